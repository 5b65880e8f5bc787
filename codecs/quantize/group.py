"""Asymmetric min–max quantization in groups of tokens or channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.float16 import FLOAT16, SMALLEST, to_float16
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels import dispatch


@register
@dataclass(frozen=True)
class Group(Stage):
    """``x`` [H, T, D] float32, float16 or bfloat16 becomes

    - ``codes`` [H, T, D] uint8, ``bits`` bits each;
    - ``scale`` and ``zero``, float16, one per ``group`` tokens of a channel (``axis="token"``:
      [H, ⌈T/group⌉, D]) or ``group`` channels of a token (``axis="channel"``: [H, T, ⌈D/group⌉]); the last
      group may be short.

    An entry is read back as ``code * scale + zero``. Raises CodecError for entries beyond float16's range.
    """

    name: ClassVar[str] = "group"
    version: ClassVar[int] = 2
    kind: ClassVar[Kind] = "quantize"
    on_any_device: ClassVar[bool] = True

    bits: int = 2
    group: int = 32
    axis: Literal["token", "channel"] = "token"

    def __post_init__(self) -> None:
        self.require(self.bits in range(1, 9), "bits", self.bits, "1 to 8")
        self.require(self.group in range(1, 1 << 31), "group", self.group, "1 to 2**31 - 1")
        self.require(self.axis in ("token", "channel"), "axis", self.axis, "'token' or 'channel'")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return (
            cls(group=4),
            cls(bits=5, group=4, axis="channel"),
            cls(bits=3, group=7, axis="channel"),
            cls(bits=8, group=1),
        )

    @property
    def dim(self) -> int:
        return 1 if self.axis == "token" else 2

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "heads", "tokens", "channels")
        grouped = list(x.shape)
        grouped[self.dim] = -(-grouped[self.dim] // self.group)
        arrays = {
            "codes": Array(x.shape, torch.uint8, levels=1 << self.bits),
            "scale": Array(tuple(grouped), torch.float16),
            "zero": Array(tuple(grouped), torch.float16),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        entries = x["x"].float()
        low, high = extremes(entries, self.dim, self.group)
        zero = to_float16(self, "smallest entry", low)
        to_float16(self, "largest entry", high)
        # Steps are counted from the zero that is stored, so that its rounding costs nothing at the upper end.
        step = (high - zero.float()).clamp_(min=0) / ((1 << self.bits) - 1)
        scale = to_float16(self, "scale", step)
        # Rounding may carry a group's upper end past what a float16 cache can hold.
        to_float16(self, "upper end of a group", zero.float() + scale.float() * ((1 << self.bits) - 1))
        spread_scale, spread_zero = (
            spread(t.float(), self.dim, self.group, entries.shape[self.dim]) for t in (scale, zero)
        )
        # A group whose range is below float16's smallest step has scale 0, and 0 / 0 would be NaN.
        codes = (entries - spread_zero) / spread_scale.clamp(min=SMALLEST)
        codes = codes.round_().clamp_(0, (1 << self.bits) - 1).to(torch.uint8)
        return spec.beside_x(x) | {"codes": codes, "scale": scale, "zero": zero}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        x = torch.empty(array.shape, dtype=array.dtype, device=y["codes"].device)
        dispatch.dequantize(y["codes"], y["scale"], y["zero"], self.dim, self.group, x)
        return spec.beside_x(y) | {"x": x}

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        return tokens

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Half the widest group's step, and what float16 and x's own dtype round away."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        low, high = extremes(tensor.float(), self.dim, self.group)
        widest = (high - low).amax().item()
        largest = tensor.abs().amax().item()
        rounding = largest * (2 * FLOAT16.eps + torch.finfo(tensor.dtype).eps) + 2.0**-16
        return inner + widest / ((1 << self.bits) - 1) / 2 + rounding


def extremes(x: Tensor, dim: int, group: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry of each group along ``dim``; the last group may be short."""
    whole, rest = divmod(x.shape[dim], group)
    shape = [*x.shape[:dim], whole, group, *x.shape[dim + 1 :]]
    blocks = [x.narrow(dim, 0, whole * group).reshape(shape)]
    if rest:
        blocks.append(x.narrow(dim, whole * group, rest).unsqueeze(dim))
    low, high = (torch.cat([f(block, dim + 1) for block in blocks], dim) for f in (torch.amin, torch.amax))
    return low, high


def spread(x: Tensor, dim: int, group: int, length: int) -> Tensor:
    """One entry for each group along ``dim`` as one for each of its ``length`` entries."""
    return x.repeat_interleave(min(group, length), dim).narrow(dim, 0, length)
