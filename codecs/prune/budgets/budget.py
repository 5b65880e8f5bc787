"""How many tokens are kept in all, and those that always are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError, unexpected

Scores: TypeAlias = Sequence[Tensor]
"""Of each layer, [H, T] float; larger for tokens to keep. H and T may differ among layers."""


@dataclass(frozen=True)
class Budget:
    """The share ``keep`` of all heads' tokens, among them each head's first ``sinks`` and last ``recent``.

    Layers named in ``whole`` keep all tokens; the others keep the fewer.
    """

    keep: float
    sinks: int = 4
    recent: int = 32
    whole: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise unexpected("keep", self.keep, "a number above 0, and at most 1")
        for name, value in (("sinks", self.sinks), ("recent", self.recent)):
            if value < 0:
                raise unexpected(name, value, "an integer from 0")

    def total(self, scores: Scores) -> int:
        """The number of tokens to keep, over all heads.

        Raises CodecError for scores that are NaN, and for a budget that is less than what is always kept.
        """
        for index, layer in enumerate(scores):
            if layer.isnan().any():
                raise CodecError(f"layer {index}: a score is NaN, expected numbers")
        return self.of([(len(s), s.shape[1]) for s in scores])

    def of(self, sizes: Sequence[tuple[int, int]]) -> int:
        """The number of tokens to keep of layers of ``sizes``, heads and tokens.

        Raises CodecError for a budget that is less than what is always kept.
        """
        every, least = sum(heads * tokens for heads, tokens in sizes), sum(self._least(sizes))
        total = round(self.keep * every)
        if total < least:
            smallest = math.ceil(least / every * 10_000) / 10_000
            ends = [f"the {which} {n}" for n, which in ((self.sinks, "first"), (self.recent, "last")) if n]
            parts = [f"of each head {' and '.join(ends)}"] if ends else []
            if self.whole:
                parts.append(f"all in layers kept whole ({', '.join(map(str, sorted(self.whole)))})")
            raise CodecError(
                f"keep is {self.keep:g}, which is {total} of {every} tokens in all heads, but {least} always stay: "
                f"{', and '.join(parts)}; the smallest keep for this model and text is {smallest:g}"
            )
        return total

    def always(self, index: int, tokens: int) -> Tensor:
        """[T] bool: the tokens of layer ``index`` that are always kept."""
        place = torch.arange(tokens)
        kept = (place < self.sinks) | (place >= tokens - self.recent)
        return kept | (index in self.whole)

    def least(self, scores: Scores) -> list[int]:
        """The tokens that are always kept of each layer, over its heads."""
        return self._least([(len(s), s.shape[1]) for s in scores])

    def _least(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        return [heads * int(self.always(index, tokens).sum()) for index, (heads, tokens) in enumerate(sizes)]


def best(scores: Tensor, always: Tensor, counts: Tensor | int) -> Tensor:
    """The mask of the ``counts`` best of ``scores`` along the last axis; those of ``always`` come first, then the larger.

    ``always`` is bool, ``counts`` has the other axes; both may be broadcast. Of equal scores, the first come first.
    """
    return ranks(scores, always) < torch.as_tensor(counts, device=scores.device)[..., None]


def ranks(scores: Tensor, first: Tensor) -> Tensor:
    """The place of each of ``scores`` along the last axis, 0 for the best: those of ``first`` before all others, then the larger.

    ``first`` is bool, and may be broadcast. Of equal scores, the first come first.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranked = first.to(scores.device).expand_as(scores).gather(-1, order)
    order = order.gather(-1, ranked.to(torch.uint8).argsort(dim=-1, descending=True, stable=True))
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def apportion(shares: Sequence[float], total: int, low: Sequence[int], high: Sequence[int]) -> list[int]:
    """Integers that sum to ``total``, in proportion to ``shares`` but between ``low`` and ``high``.

    ``total`` lies between the sums of these. What rounding leaves goes to the largest fractions, of equal ones to the first.
    """
    largest = max(shares, default=0.0)
    # What has no share still takes what the others cannot hold.
    sizes = [max(share, largest * 1e-9) if largest > 0 else 1.0 for share in shares]
    bounds = list(zip(sizes, low, high, strict=True))

    def fill(factor: float) -> list[float]:
        return [min(max(factor * size, least), most) for size, least, most in bounds]

    below, above = 0.0, max((most / size for size, _, most in bounds), default=0.0)
    if sum(fill(above)) > total:
        while (middle := (below + above) / 2) not in (below, above):
            below, above = (middle, above) if sum(fill(middle)) <= total else (below, middle)
    else:
        below = above
    exact = fill(below)
    counts = [int(value) for value in exact]
    order = sorted(range(len(counts)), key=lambda n: (counts[n] - exact[n], n))
    while (missing := total - sum(counts)) > 0:
        for n in [n for n in order if counts[n] < high[n]][:missing]:
            counts[n] += 1
    return counts
