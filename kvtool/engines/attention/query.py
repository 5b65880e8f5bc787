"""Attention that appended tokens pay to the cached ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from kvtool.engines.attention.capture import capture_attention, capture_error
from kvtool.engines.cache import DocumentCache, refuse_pruned
from kvtool.engines.recompute import OnLayer, recompute_tokens
from kvtool.model.model import Model

AnObserver = TypeVar("AnObserver", "_MeanWeights", "_EachQuery")


def query_attention(model: Model, cache: DocumentCache, token_ids: Tensor, before_layer: OnLayer) -> Tensor:
    """The mean weight that tokens after ``cache`` give each of its N tokens, [L, Q, N] float32: by layer and query head.

    ``token_ids`` [S] int64 are run after the cache, which is left as it was. ``before_layer`` is called with a layer's
    index before the layer is read. Raises ``ModelError`` for a family whose attention cannot be captured.
    """
    make_observer = partial(_MeanWeights, cache.get_seq_length(), len(token_ids))
    return _means(_observe_after(model, cache, token_ids, before_layer, make_observer))


def token_attention(model: Model, cache: DocumentCache, tokens: Tensor, before_layer: OnLayer) -> Tensor:
    """The same of tokens of ``cache`` itself: ``tokens`` [S] are their indices, ascending."""
    make_observer = partial(_MeanWeights, cache.get_seq_length(), len(tokens))
    return _means(_observe(model, cache, cache.token_ids, tokens, before_layer, make_observer, write=False))


def query_norms(model: Model, cache: DocumentCache, token_ids: Tensor, before_layer: OnLayer) -> Tensor:
    """The norm over tokens after ``cache`` of the weights that each gives, the mean of its heads, [L, N] float32.

    A token that one of them attends to much has a larger norm than one that all attend to a little. Otherwise as
    ``query_attention``.
    """
    make_observer = partial(_EachQuery, cache.get_seq_length())
    observers = _observe_after(model, cache, token_ids, before_layer, make_observer)
    return torch.stack([observer.norms() for observer in observers])


def _observe_after(
    model: Model,
    cache: DocumentCache,
    token_ids: Tensor,
    before_layer: OnLayer,
    make_observer: Callable[[], AnObserver],
) -> list[AnObserver]:
    """What an observer for each layer saw of ``token_ids``, run after the cache."""
    refuse_pruned(cache, "measuring what a question attends to")
    n_cached = cache.get_seq_length()
    appended = torch.arange(n_cached, n_cached + len(token_ids))
    for layer in cache.layers:
        layer.extend(len(token_ids))
    try:
        all_ids = torch.cat([cache.token_ids, token_ids])
        return _observe(model, cache, all_ids, appended, before_layer, make_observer, write=True)
    finally:
        for layer in cache.layers:
            layer.crop(-len(token_ids))


@torch.no_grad()
def _observe(
    model: Model,
    cache: DocumentCache,
    token_ids: Tensor,
    tokens: Tensor,
    before_layer: OnLayer,
    make_observer: Callable[[], AnObserver],
    *,
    write: bool,
) -> list[AnObserver]:
    observers = [make_observer() for _ in cache.layers]
    with capture_attention(model, observers):
        recompute_tokens(model, cache, token_ids, tokens, write=write, before_layer=before_layer)
    if not all(observer.weights for observer in observers):
        raise capture_error(model)
    return observers


def _means(observers: Sequence[_MeanWeights]) -> Tensor:
    return torch.stack([torch.cat(list(observer.weights.values())) for observer in observers])


class _MeanWeights:
    """Weights that each head gives the cached tokens, averaged over the queries."""

    def __init__(self, n_cached: int, n_queries: int) -> None:
        self.n_cached, self.n_queries = n_cached, n_queries
        self.weights: dict[int, Tensor] = {}

    def on_queries(self, query: Tensor, mask: Tensor, scaling: float | None) -> None:
        pass

    def on_weights(self, first: int, weights: Tensor) -> None:
        share = weights[..., : self.n_cached].sum(1, dtype=torch.float32).cpu() / self.n_queries
        self.weights[first] = self.weights[first] + share if first in self.weights else share


class _EachQuery:
    """Weights that each query gives the cached tokens, summed over heads."""

    def __init__(self, n_cached: int) -> None:
        self.n_cached, self.n_heads = n_cached, 0
        self.weights: defaultdict[int, list[Tensor]] = defaultdict(list)

    def on_queries(self, query: Tensor, mask: Tensor, scaling: float | None) -> None:
        self.n_heads = len(query)

    def on_weights(self, first: int, weights: Tensor) -> None:
        # The heads from ``first`` on come with one block of queries after the other.
        self.weights[first].append(weights[..., : self.n_cached].sum(0, dtype=torch.float32).cpu())

    def norms(self) -> Tensor:
        rows = torch.stack([torch.cat(blocks) for blocks in self.weights.values()]).sum(0)
        norms: Tensor = torch.linalg.vector_norm(rows / self.n_heads, dim=0)
        return norms
