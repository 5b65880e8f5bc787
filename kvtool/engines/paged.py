"""Layers of a cache that read of a document only what a question needs, once the question's queries are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from kvtool.codecs import LayerKV
from kvtool.engines.ragged import UniformLayer

REACH = 0.5
"""How far from the middle of a page's keys to their bounds a page is ranked by. Few keys come near the bounds of all channels."""


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
        products = page_scores(query.transpose(0, 1).flatten(1, 2).float().cpu(), low, high)
        pages = choose(products * (scaling or query.shape[-1] ** -0.5), self.share)
        part, self.source = self.source.pages(self.index, pages), None
        held = len(self.indices)
        keys, values = self.keys[:, :, held:].clone(), self.values[:, :, held:].clone()
        super().crop(-self.n_appended)
        self.place(part)
        return self.update(keys, values)


def page_scores(queries: Tensor, low: Tensor, high: Tensor, reach: float = REACH) -> Tensor:
    """What a key of each page may have as its product with queries [Q, S, D], [Q, S, P].

    ``low`` and ``high`` [P, H, D] are the pages' smallest and largest keys of each channel; Q / H query heads share a key head.
    With ``reach`` 1, no product is larger; with 0, it is that of the middle between the two.
    """
    group = len(queries) // low.shape[1]
    middle, half = (
        x.transpose(0, 1).repeat_interleave(group, 0).mT for x in ((high + low) / 2, (high - low) / 2)
    )
    return queries @ middle + reach * (queries.abs() @ half)


def choose(scores: Tensor, share: float) -> list[int]:
    """The ``share`` of the pages, ascending, that may have most of the attention, by their scores [Q, S, P].

    Each head and query has the same say: a softmax over its scores, summed.
    """
    n_pages = scores.shape[-1]
    weights = scores.softmax(-1).sum((0, 1))
    chosen: list[int] = weights.topk(math.ceil(share * n_pages)).indices.sort().values.tolist()
    return chosen
