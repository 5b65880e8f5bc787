"""Asymmetric min–max quantization in groups, with a window of recent tokens kept in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.registry import register
from kvtool.codecs.stage import Array, Kind, Payload, Spec, Stage
from kvtool.kernels import dispatch

FLOAT16 = torch.finfo(torch.float16)


@register
@dataclass(frozen=True)
class Group(Stage):
    """``x`` [H, T, D] float32, float16 or bfloat16 becomes

    - ``codes`` [H, T', D] uint8, ``bits`` bits each, of the first T' = max(T - recent, 0) tokens;
    - ``scale`` and ``zero``, float16, one per ``group`` tokens of a channel (``axis="token"``:
      [H, ⌈T'/group⌉, D]) or ``group`` channels of a token (``axis="channel"``: [H, T', ⌈D/group⌉]); the last
      group may be short;
    - ``recent`` [H, T - T', D], the last tokens, in x's own dtype where that has 16 bits, else float16.

    An entry is read back as ``code * scale + zero``. Raises CodecError for entries beyond float16's range.
    """

    name: ClassVar[str] = "group"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    bits: int = 2
    group: int = 32
    recent: int = 128
    axis: Literal["token", "channel"] = "token"

    def __post_init__(self) -> None:
        self.require(self.bits in range(1, 9), "bits", self.bits, "1 to 8")
        self.require(self.group in range(1, 1 << 31), "group", self.group, "1 to 2**31 - 1")
        self.require(self.recent in range(1 << 31), "recent", self.recent, "0 to 2**31 - 1")
        self.require(self.axis in ("token", "channel"), "axis", self.axis, "'token' or 'channel'")

    @property
    def dim(self) -> int:
        return 1 if self.axis == "token" else 2

    def plan(self, spec: Spec) -> Spec:
        x = spec.arrays.get("x", Array((), torch.float32))
        floats = (torch.float32, torch.float16, torch.bfloat16)
        self.require(len(x.shape) == 3, "shape of x", list(x.shape), "[heads, tokens, channels]")
        self.require(x.dtype in floats, "dtype of x", x.dtype, "float32, float16 or bfloat16")
        heads, tokens, channels = x.shape
        quantized = max(tokens - self.recent, 0)
        grouped = [heads, quantized, channels]
        grouped[self.dim] = -(-grouped[self.dim] // self.group)
        window = x.dtype if x.dtype.itemsize == 2 else torch.float16
        arrays = {
            "codes": Array((heads, quantized, channels), torch.uint8, levels=1 << self.bits),
            "scale": Array(tuple(grouped), torch.float16),
            "zero": Array(tuple(grouped), torch.float16),
            "recent": Array((heads, tokens - quantized, channels), window),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        planned = self.plan(spec).arrays
        quantized = planned["codes"].shape[1]
        old, recent = x["x"][:, :quantized], x["x"][:, quantized:]
        low, high = _extremes(old.float(), self.dim, self.group)
        zero = self._float16("smallest entry", low)
        self._float16("largest entry", high)
        # Steps are counted from the zero that is stored, so that its rounding costs nothing at the upper end.
        step = (high - zero.float()).clamp_(min=0) / ((1 << self.bits) - 1)
        scale = self._float16("scale", step)
        # Rounding may carry a group's upper end past what a float16 cache can hold.
        self._float16("upper end of a group", zero.float() + scale.float() * ((1 << self.bits) - 1))
        spread = [
            t.float().repeat_interleave(self.group, dim=self.dim).narrow(self.dim, 0, old.shape[self.dim])
            for t in (scale, zero)
        ]
        # A group whose range is below float16's smallest step has scale 0, and 0 / 0 would be NaN.
        codes = (old.float() - spread[1]) / spread[0].clamp(min=FLOAT16.smallest_normal * FLOAT16.eps)
        codes = codes.round_().clamp_(0, (1 << self.bits) - 1).to(torch.uint8)
        window = recent.contiguous()
        if planned["recent"].dtype != window.dtype:
            window = self._float16("recent token's entry", window)
        rest = {name: tensor for name, tensor in x.items() if name != "x"}
        return rest | {"codes": codes, "scale": scale, "zero": zero, "recent": window}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        codes = y["codes"]
        x = torch.empty(array.shape, dtype=array.dtype, device=codes.device)
        old, recent = x[:, : codes.shape[1]], x[:, codes.shape[1] :]
        dispatch.dequantize(codes, y["scale"], y["zero"], self.dim, self.group, old)
        recent.copy_(y["recent"])
        return {name: y[name] for name in spec.arrays if name != "x"} | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Half the widest group's step, and what float16 and x's own dtype round away."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        old = tensor[:, : self.plan(spec).arrays["codes"].shape[1]].float()
        low, high = _extremes(old, self.dim, self.group)
        widest = (high - low).amax().item() if low.numel() else 0.0
        largest = tensor.abs().amax().item()
        rounding = largest * (2 * FLOAT16.eps + torch.finfo(tensor.dtype).eps) + 2.0**-16
        return inner + widest / ((1 << self.bits) - 1) / 2 + rounding

    def _float16(self, field: str, values: Tensor) -> Tensor:
        rounded = values.to(torch.float16)
        overflow = ~torch.isfinite(rounded)
        if overflow.any():
            worst = values[overflow].flatten()[0].item()
            raise CodecError(
                f"quantize stage {self.name!r}: {field} is {worst:.6g}, beyond float16's {FLOAT16.max:g}"
            )
        return rounded


def _extremes(x: Tensor, dim: int, group: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry of each group along ``dim``; the last group may be short."""
    whole, rest = divmod(x.shape[dim], group)
    shape = [*x.shape[:dim], whole, group, *x.shape[dim + 1 :]]
    blocks = [x.narrow(dim, 0, whole * group).reshape(shape)]
    if rest:
        blocks.append(x.narrow(dim, whole * group, rest).unsqueeze(dim))
    return (
        torch.cat([block.amin(dim + 1) for block in blocks], dim),
        torch.cat([block.amax(dim + 1) for block in blocks], dim),
    )
