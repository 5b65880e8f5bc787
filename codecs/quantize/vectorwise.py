"""Symmetric quantization against the largest entry of a token's whole vector, finer in early layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.float16 import FLOAT16, to_float16
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

RUNS_AT_MOST = 1024
"""Runs of layers that have a number of bins of their own."""


@register
@dataclass(frozen=True)
class Vectorwise(Stage):
    """``x`` [H, T, D] float32, float16 or bfloat16 becomes

    - ``codes`` [H, T, D] uint8, from 0 to 2c, where ``c = bins // 2 - 1`` stands for 0;
    - ``largest`` [T] float16, a token's largest magnitude over all heads and channels.

    An entry is read back as ``(code - c) / c * largest``. ``bins`` has a number for each run of layers: layers
    below ``ends[0]`` get ``bins[0]``, and so on; without ``ends`` the runs are equal shares of the model's
    depth. Raises CodecError for entries beyond float16's range.
    """

    name: ClassVar[str] = "vectorwise"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"
    on_any_device: ClassVar[bool] = True

    bins: tuple[int, ...] = (32, 16)
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        fits = 0 < len(self.bins) <= RUNS_AT_MOST and all(n in range(4, 257) for n in self.bins)
        self.require(fits, "bins", self.bins, f"up to {RUNS_AT_MOST} numbers from 4 to 256")
        ordered = list(self.ends) == sorted(self.ends) and all(end >= 0 for end in self.ends)
        counted = len(self.ends) in (0, len(self.bins) - 1)
        self.require(ordered and counted, "ends", self.ends, "rising layers, one fewer than bins, or none")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(bins=(32, 16), ends=(10,)), cls(bins=(256,))

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "heads", "tokens", "channels")
        arrays = {
            "codes": Array(x.shape, torch.uint8, levels=2 * self._half(spec) + 1),
            "largest": Array((x.shape[1],), torch.float16),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        entries, half = x["x"].float(), self._half(spec)
        largest = _largest(entries)
        kept = to_float16(self, "largest entry", largest)
        # A token of zeros would be divided by 0.
        factor = half / largest.clamp(min=torch.finfo(torch.float32).tiny)
        codes = torch.round(entries * factor[:, None] + half).clamp_(0, 2 * half).to(torch.uint8)
        return spec.beside_x(x) | {"codes": codes, "largest": kept}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array, half = spec.arrays["x"], self._half(spec)
        x = y["codes"].to(torch.float32).sub_(half).mul_((y["largest"].float() / half)[:, None])
        return spec.beside_x(y) | {"x": x.to(array.dtype)}

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        return tokens

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Half a step of the largest token, and what float16 and x's own dtype round away."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        largest = _largest(tensor.float()).amax().item()
        rounding = largest * (FLOAT16.eps + torch.finfo(tensor.dtype).eps) + 2.0**-16
        return inner + largest / self._half(spec) / 2 * (1 + FLOAT16.eps) + rounding

    def _half(self, spec: Spec) -> int:
        first, total = spec.place.first, spec.place.total
        run = sum(first >= end for end in self.ends) if self.ends else first * len(self.bins) // total
        return self.bins[run] // 2 - 1


def _largest(x: Tensor) -> Tensor:
    """[T]; 0 where a token has no entries."""
    return x.abs().amax((0, 2)) if x.shape[0] * x.shape[2] else x.new_zeros(x.shape[1])
