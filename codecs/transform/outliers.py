"""The largest and smallest entries of each vector apart, sparse, in 16 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.float16 import to_window, window_dtype, window_error
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.codecs.transform.join import Join


@register
@dataclass(frozen=True)
class Outliers(Stage):
    """``x`` [..., T, D] keeps its shape without the outliers of each vector. Stored beside it are

    - ``outliers`` [..., vectors, k], the entries taken out, in x's own dtype where that has 16 bits, else
      float16;
    - ``outlier_index`` [..., vectors, k], where they stood in their vector, ascending: uint8, int16 or int32,
      whichever is the first to hold every place.

    A vector is one channel of a head over all tokens (``axis="token"``, n = T, D vectors) or one token of a
    head over all channels (``axis="channel"``, n = D, T vectors). k = ⌈fraction · n⌉ of its n entries are
    outliers, as in KVQuant (arXiv 2401.18079) and GEAR (arXiv 2403.05527): half of them the largest and half
    the smallest (``sides="both"``; one more large one where k is odd), or those of largest absolute value
    (``sides="magnitude"``). In their place is the midpoint of the others, which widens no quantizer's
    range; 0 where there are no others. Raises CodecError for outliers beyond float16's range.
    """

    name: ClassVar[str] = "outliers"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    fraction: float = 0.01
    axis: Literal["token", "channel"] = "token"
    sides: Literal["both", "magnitude"] = "both"

    def __post_init__(self) -> None:
        fits = isinstance(self.fraction, float) and 0 < self.fraction < 1
        self.require(fits, "fraction", self.fraction, "a number between 0 and 1")
        self.require(self.axis in ("token", "channel"), "axis", self.axis, "'token' or 'channel'")
        self.require(self.sides in ("both", "magnitude"), "sides", self.sides, "'both' or 'magnitude'")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return (
            cls(),
            cls(fraction=0.05, axis="channel"),
            cls(fraction=0.1, axis="token", sides="magnitude"),
            cls(fraction=0.99, axis="channel", sides="magnitude"),
        )

    @property
    def dim(self) -> int:
        return -2 if self.axis == "token" else -1

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        n, vectors = x.shape[self.dim], x.shape[-3 - self.dim]
        shape = (*x.shape[:-2], vectors, self._count(n))
        dtype = torch.uint8 if n <= 1 << 8 else torch.int16 if n <= 1 << 15 else torch.int32
        # A small index takes as few bits as its vector's length needs.
        index = Array(shape, dtype, levels=n if dtype == torch.uint8 and n else None)
        outliers = {"outliers": Array(shape, window_dtype(x.dtype)), "outlier_index": index}
        return spec.replace("x", {"x": x, **outliers}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        vectors = self._turned(x["x"]).contiguous()
        index = self._furthest(vectors)
        taken = vectors.gather(-1, index)
        apart = torch.zeros(vectors.shape, dtype=torch.bool, device=vectors.device).scatter_(-1, index, True)
        rest = torch.where(apart, _midpoint(vectors, apart), vectors)
        array = self.plan(spec).arrays["outlier_index"]
        outliers = {"outliers": to_window(self, "outlier", taken), "outlier_index": index.to(array.dtype)}
        return {**x, "x": self._turned(rest).contiguous(), **outliers}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array, index = spec.arrays["x"], y["outlier_index"].long()
        n = array.shape[self.dim]
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < n:
            held = f"{int(index.min())} to {int(index.max())}"
            raise CodecError(f"{self.label}: outlier_index holds {held}, expected 0 to {n - 1}")
        vectors = self._turned(y["x"]).clone(memory_format=torch.contiguous_format)
        vectors.scatter_(-1, index, y["outliers"].to(array.dtype))
        x = self._turned(vectors).contiguous()
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        return max(inner, window_error(x["x"]))

    def _count(self, n: int) -> int:
        return math.ceil(self.fraction * n)

    def _turned(self, x: Tensor) -> Tensor:
        """``x`` with its vectors last; of that, ``x`` again."""
        return x.transpose(-1, -2) if self.axis == "token" else x

    def _furthest(self, vectors: Tensor) -> Tensor:
        """Where each vector's outliers are, ascending. In a vector of equal entries one may come twice."""
        count = self._count(vectors.shape[-1])
        if self.sides == "magnitude":
            return vectors.abs().topk(count, dim=-1).indices.sort(-1).values
        largest = vectors.topk(count - count // 2, dim=-1).indices
        smallest = vectors.topk(count // 2, dim=-1, largest=False).indices
        return torch.cat([largest, smallest], -1).sort(-1).values


@register
@dataclass(frozen=True)
class JoinedOutliers(Outliers):
    """As ``Outliers`` of all heads' channels in a row, so that a token's outliers are those of all its heads.

    ``outliers`` and ``outlier_index`` are [..., 1, vectors, k]; with ``axis="token"`` the channels of all heads are the
    vectors. k = 2 · ⌊fraction · n / 2⌋, as in GEAR's code, so that both sides have the same number.
    """

    name: ClassVar[str] = "joined-outliers"
    version: ClassVar[int] = 1

    def plan(self, spec: Spec) -> Spec:
        joined = super().plan(self._joined(spec))
        return joined.with_arrays({**joined.arrays, "x": spec.arrays["x"]})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        encoded = super().encode(Join().encode(x, spec), self._joined(spec))
        return {**encoded, **Join().decode({"x": encoded["x"]}, spec)}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        decoded = super().decode(Join().encode(y, spec), self._joined(spec))
        return {**decoded, **Join().decode({"x": decoded["x"]}, spec)}

    def _joined(self, spec: Spec) -> Spec:
        return Join().plan(spec)

    def _count(self, n: int) -> int:
        return 2 * int(self.fraction * n / 2)


def _midpoint(vectors: Tensor, apart: Tensor) -> Tensor:
    """Between the smallest and the largest of each vector's entries that are not ``apart`` [..., 1]."""
    if not vectors.shape[-1]:
        return vectors.new_zeros((*vectors.shape[:-1], 1))
    low = vectors.masked_fill(apart, math.inf).amin(-1, keepdim=True)
    high = vectors.masked_fill(apart, -math.inf).amax(-1, keepdim=True)
    # Halved before they are added, lest the sum overflow.
    return torch.where(low <= high, (low.float() / 2 + high.float() / 2).to(vectors.dtype), 0)
