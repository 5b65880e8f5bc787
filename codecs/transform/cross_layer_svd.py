"""The caches of neighbouring layers as one matrix of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.float16 import saturated, to_float16
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels.threads import one_thread


@register
@dataclass(frozen=True)
class CrossLayerSvd(Stage):
    """``x`` [L, H, T, D] becomes ``x`` [1, T, r], the tokens' coefficients in a basis that the layers share, and

    - ``right`` [L, H, r, D], the basis, as each head of each layer sees it.

    Both are float16. The caches of the L layers form one matrix [T, L · H · D], whose best
    approximation of rank r they multiply to, as in xKV (arXiv 2503.18893); the square root of each singular
    value goes to either side. r is ⌊rank · L · H · D⌋, at least 1 and at most T and L · H · D; the basis is the
    prompt's own, and pays only where T is well above r. Coefficients are sorted by singular value.
    """

    name: ClassVar[str] = "cross-layer-svd"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    rank: float = 0.125

    def __post_init__(self) -> None:
        self.require(0 < self.rank <= 1, "rank", self.rank, "a number above 0, at most 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(rank=0.5), cls(rank=1.0)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "layers", "heads", "tokens", "channels")
        layers, heads, tokens, channels = x.shape
        rank = self._rank(x)
        arrays = {
            "x": Array((1, tokens, rank), torch.float16),
            "right": Array((layers, heads, rank, channels), torch.float16),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        layers, heads, _, channels = array.shape
        side_by_side = x["x"].double().permute(2, 0, 1, 3).flatten(1)
        with one_thread():
            left, right = _factors(side_by_side, self._rank(array))
        right = right.reshape(right.shape[0], layers, heads, channels).permute(1, 2, 0, 3)
        return spec.beside_x(x) | {
            "x": to_float16(self, "coefficient", left)[None].contiguous(),
            "right": to_float16(self, "entry of the basis", right).contiguous(),
        }

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        x = torch.empty(array.shape, dtype=array.dtype, device=y["x"].device)
        # Sums of float16 products hardly round in float64, so that every machine reads back the same. A layer
        # at a time, since all of them would take several times the cache's bytes.
        for layer, right in zip(x, y["right"], strict=True):
            layer.copy_(saturated(y["x"].double() @ right.double(), array.dtype))
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The error on ``x``, ``inner`` once for each coefficient, and an ulp."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        encoded, own, largest = self.trial(x, spec)
        amplified = inner * encoded["right"].double().abs().sum(2).amax().item()
        dtype = torch.finfo(tensor.dtype)
        return own + amplified + (largest + amplified) * dtype.eps + dtype.smallest_normal * dtype.eps

    def _rank(self, x: Array) -> int:
        layers, heads, tokens, channels = x.shape
        width = layers * heads * channels
        return min(max(int(self.rank * width), 1), tokens, width)


def _factors(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors [m, rank] and [rank, n] of ``x`` [m, n], as from its singular value decomposition.

    From the eigenvectors of the smaller of its two Gram matrices, which costs far less where there are many
    tokens; in float64, the singular values that squaring loses are far below float16's steps.
    """
    if x.shape[0] > x.shape[1]:
        right, left = _factors(x.mT, rank)
        return left.mT, right.mT
    basis = torch.linalg.eigh(x @ x.mT).eigenvectors.flip(1)[:, :rank]
    if basis.numel():
        # An eigenvector's sign is the library's whim.
        basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    others = basis.mT @ x
    root = others.norm(dim=1).sqrt()
    return basis * root, others / root.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
