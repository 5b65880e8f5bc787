"""Group quantization, with its error stored at low rank."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.float16 import saturated, to_float16
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels.threads import one_thread


@register
@dataclass(frozen=True)
class LowRankResidual(Group):
    """``x`` [H, T, D] becomes what ``Group`` makes of it, and beside that

    - ``left`` [H, T, r] and ``right`` [H, r, D], float16, whose product is close to what quantization lost
      of each head; r = min(rank, T, D).

    An entry is read back as ``code * scale + zero`` plus its entry of the product, as in GEAR (arXiv
    2403.05527). The factors come from ``iterations`` steps of subspace iteration, which begin at the tokens
    that lost most; each factor carries the square roots of the singular values. Raises CodecError for entries
    beyond float16's range.
    """

    name: ClassVar[str] = "low-rank-residual"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    rank: int = 4
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.rank in range(1, 1 << 16), "rank", self.rank, "1 to 65535")
        self.require(self.iterations in range(1, 65), "iterations", self.iterations, "1 to 64")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(group=4), cls(bits=5, group=7, axis="channel", rank=2, iterations=1), cls(rank=100)

    def plan(self, spec: Spec) -> Spec:
        backbone = super().plan(spec)
        heads, tokens, channels = spec.arrays["x"].shape
        rank = min(self.rank, tokens, channels)
        factors = {
            "left": Array((heads, tokens, rank), torch.float16),
            "right": Array((heads, rank, channels), torch.float16),
        }
        return backbone.replace("codes", {"codes": backbone.arrays["codes"], **factors}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        entries = x["x"].float()
        encoded = super().encode({**x, "x": entries}, spec)
        lost = entries - super().decode(encoded, _in_float32(spec))["x"]
        with one_thread():
            left, right = self._factors(lost.double())
        factors = (("left", left), ("right", right))
        stored = {n: to_float16(self, f"entry of the {n} factor", x).contiguous() for n, x in factors}
        return {**encoded, **stored}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        decoded = dict(super().decode(y, _in_float32(spec)))
        # Sums of float16 products hardly round in float64, so that every machine reads back the same.
        lost = y["left"].double() @ y["right"].double()
        return decoded | {"x": saturated(lost.add_(decoded["x"]), spec.arrays["x"].dtype)}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The error on ``x``, and an ulp: a low rank bounds no single entry."""
        if not x["x"].numel():
            return inner
        _, own, largest = self.trial(x, spec)
        return inner + own + largest * torch.finfo(x["x"].dtype).eps

    def _factors(self, lost: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [H, T, r] and [H, r, D] of ``lost`` [H, T, D]."""
        rank = min(self.rank, *lost.shape[1:])
        most = lost.norm(dim=2).sort(dim=1, descending=True, stable=True).indices[:, :rank, None]
        right = lost.gather(1, most.expand(-1, -1, lost.shape[2]))
        left = lost.new_zeros(*lost.shape[:2], rank)
        for _ in range(self.iterations if lost.numel() else 0):
            left = torch.linalg.qr(lost @ torch.linalg.qr(right.mT).Q).Q
            right = left.mT @ lost
        root = right.norm(dim=2, keepdim=True).sqrt()
        return left * root.mT, right / root.clamp(min=torch.finfo(torch.float64).tiny)


def _in_float32(spec: Spec) -> Spec:
    """The spec of an ``x`` that has not been rounded to the cache's dtype."""
    array = dataclasses.replace(spec.arrays["x"], dtype=torch.float32)
    return spec.with_arrays({**spec.arrays, "x": array})
