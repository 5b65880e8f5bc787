"""Attention that appended tokens pay to the cached ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from kvtool.engines.attention.capture import Observer, capture_attention, capture_error
from kvtool.engines.cache import DocumentCache
from kvtool.engines.recompute import OnLayer, recompute_tokens
from kvtool.model.model import Model

AnObserver = TypeVar("AnObserver", bound=Observer)


def query_attention(model: Model, cache: DocumentCache, token_ids: Tensor, before_layer: OnLayer) -> Tensor:
    """The mean weight that tokens after ``cache`` give each of its N tokens, [L, Q, N] float32: by layer and query head.

    ``token_ids`` [S] int64 are run after the cache, which is left as it was. ``before_layer`` is called with a layer's
    index before the layer is read. Raises ``ModelError`` for a family whose attention cannot be captured.
    """
    n_cached = cache.get_seq_length()
    observers = _observed(
        model, cache, token_ids, before_layer, lambda: _MeanWeights(n_cached, len(token_ids))
    )
    if not all(observer.heads for observer in observers):
        raise capture_error(model)
    return torch.stack([torch.cat(list(observer.heads.values())) for observer in observers])


def query_norms(model: Model, cache: DocumentCache, token_ids: Tensor, before_layer: OnLayer) -> Tensor:
    """The norm over tokens after ``cache`` of the weights that each gives, the mean of its heads, [L, N] float32.

    A token that one of them attends to much has a larger norm than one that all attend to a little. Otherwise as
    ``query_attention``.
    """
    n_cached = cache.get_seq_length()
    observers = _observed(model, cache, token_ids, before_layer, lambda: _EachQuery(n_cached))
    if not all(observer.rows for observer in observers):
        raise capture_error(model)
    return torch.stack([observer.norms() for observer in observers])


@torch.no_grad()
def _observed(
    model: Model,
    cache: DocumentCache,
    token_ids: Tensor,
    before_layer: OnLayer,
    make_observer: Callable[[], AnObserver],
) -> list[AnObserver]:
    """What an observer for each layer saw of the tokens run after the cache."""
    n_cached = cache.get_seq_length()
    appended = torch.arange(n_cached, n_cached + len(token_ids))
    for layer in cache.layers:
        layer.extend(len(token_ids))
    observers = [make_observer() for _ in cache.layers]
    try:
        with capture_attention(model, observers):
            all_ids = torch.cat([cache.token_ids, token_ids])
            recompute_tokens(model, cache, all_ids, appended, before_layer=before_layer)
    finally:
        for layer in cache.layers:
            layer.crop(-len(token_ids))
    return observers


class _MeanWeights:
    """Weights that each head gives the cached tokens, averaged over the queries."""

    def __init__(self, n_cached: int, n_queries: int) -> None:
        self.n_cached, self.n_queries = n_cached, n_queries
        self.heads: dict[int, Tensor] = {}

    def on_queries(self, query: Tensor, mask: Tensor) -> None:
        pass

    def on_weights(self, first: int, weights: Tensor) -> None:
        share = weights[..., : self.n_cached].sum(1, dtype=torch.float32).cpu() / self.n_queries
        self.heads[first] = self.heads[first] + share if first in self.heads else share


class _EachQuery:
    """Weights that each query gives the cached tokens, summed over heads."""

    def __init__(self, n_cached: int) -> None:
        self.n_cached, self.n_heads = n_cached, 0
        self.rows: defaultdict[int, list[Tensor]] = defaultdict(list)

    def on_queries(self, query: Tensor, mask: Tensor) -> None:
        self.n_heads = len(query)

    def on_weights(self, first: int, weights: Tensor) -> None:
        # The heads from ``first`` on come with one block of queries after the other.
        self.rows[first].append(weights[..., : self.n_cached].sum(0, dtype=torch.float32).cpu())

    def norms(self) -> Tensor:
        weights = torch.stack([torch.cat(blocks) for blocks in self.rows.values()]).sum(0)
        return (weights / self.n_heads).norm(dim=0)
