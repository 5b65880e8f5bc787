"""Layers of a cache that read of a document only what a question needs, once the question's queries are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from kvtool.codecs import LayerKV
from kvtool.engines.ragged import UniformLayer


class PageSource(Protocol):
    """A document in pages of tokens, which are read from a file or over a network."""

    def bounds(self, layer: int) -> tuple[Tensor, Tensor]:
        """The smallest and the largest key of each page and channel, [P, H, D] float32 each."""

    def pages(self, layer: int, pages: Sequence[int]) -> LayerKV:
        """The tokens of ``pages``, ascending, of a layer. Positions are places in the cache."""


class PagedLayer(UniformLayer):
    """A layer that holds the tokens that were placed, and reads a share of a document's pages when it is first attended to.

    The queries of that pass, all heads' and all tokens', choose the pages. Later tokens attend to the same ones.
    """

    def __init__(self, n_held: int, n_tokens: int, index: int, source: PageSource, share: float) -> None:
        """Layer ``index`` of a document of ``n_tokens`` of which ``n_held`` are placed before any are read."""
        super().__init__(n_held, n_tokens)
        self.index, self.share = index, share
        self.source: PageSource | None = source

    def read(self, query: Tensor, scaling: float | None) -> tuple[Tensor, Tensor]:
        """All keys and values, once the pages that ``query`` [B, Q, S, D] ranks first are before the appended tokens."""
        assert self.keys is not None
        assert self.values is not None
        if self.source is None:
            return self.keys, self.values
        low, high = self.source.bounds(self.index)
        bounds = upper_bounds(query.transpose(0, 1).flatten(1, 2).float().cpu(), low, high)
        pages = choose(bounds * (scaling or query.shape[-1] ** -0.5), self.share)
        part, self.source = self.source.pages(self.index, pages), None
        held = len(self.indices)
        keys, values = self.keys[:, :, held:].clone(), self.values[:, :, held:].clone()
        super().crop(-self.n_appended)
        self.place(part)
        return self.update(keys, values)


def upper_bounds(queries: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The largest product that queries [Q, S, D] can have with a key of each page, [Q, S, P].

    ``low`` and ``high`` [P, H, D] are the pages' smallest and largest keys of each channel; Q / H query heads share a key head.
    """
    group = len(queries) // low.shape[1]
    smallest, largest = (x.transpose(0, 1).repeat_interleave(group, 0).mT for x in (low, high))
    return queries.clamp(max=0) @ smallest + queries.clamp(min=0) @ largest


def choose(scores: Tensor, share: float) -> list[int]:
    """The ``share`` of the pages, ascending, that have most of the attention, by upper bounds of their scores [Q, S, P].

    Each head and query has the same say: a softmax over its bounds, summed.
    """
    n_pages = scores.shape[-1]
    weights = scores.softmax(-1).sum((0, 1))
    chosen: list[int] = weights.topk(math.ceil(share * n_pages)).indices.sort().values.tolist()
    return chosen
