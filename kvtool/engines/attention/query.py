"""Attention that appended tokens pay to the cached ones."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.engines.attention.capture import capture_attention, capture_error
from kvtool.engines.cache import DocumentCache
from kvtool.engines.recompute import OnLayer, recompute_tokens
from kvtool.model.model import Model


@torch.no_grad()
def query_attention(model: Model, cache: DocumentCache, token_ids: Tensor, before_layer: OnLayer) -> Tensor:
    """The mean weight that tokens after ``cache`` give each of its N tokens, [L, Q, N] float32: by layer and query head.

    ``token_ids`` [S] int64 are run after the cache, which is left as it was. ``before_layer`` is called with a layer's
    index before the layer is read. Raises ``ModelError`` for a family whose attention cannot be captured.
    """
    n_cached = cache.get_seq_length()
    appended = torch.arange(n_cached, n_cached + len(token_ids))
    for layer in cache.layers:
        layer.extend(len(token_ids))
    try:
        all_ids = torch.cat([cache.token_ids, token_ids])
        return _mean_weights(model, cache, all_ids, appended, n_cached, before_layer, write=True)
    finally:
        for layer in cache.layers:
            layer.crop(-len(token_ids))


@torch.no_grad()
def token_attention(model: Model, cache: DocumentCache, tokens: Tensor, before_layer: OnLayer) -> Tensor:
    """The same of tokens of ``cache`` itself: ``tokens`` [S] are their indices, ascending."""
    n_cached = cache.get_seq_length()
    return _mean_weights(model, cache, cache.token_ids, tokens, n_cached, before_layer, write=False)


def _mean_weights(
    model: Model,
    cache: DocumentCache,
    token_ids: Tensor,
    tokens: Tensor,
    n_cached: int,
    before_layer: OnLayer,
    *,
    write: bool,
) -> Tensor:
    observers = [_MeanWeights(n_cached, len(tokens)) for _ in cache.layers]
    with capture_attention(model, observers):
        recompute_tokens(model, cache, token_ids, tokens, write=write, before_layer=before_layer)
    if not all(observer.heads for observer in observers):
        raise capture_error(model)
    return torch.stack([torch.cat(list(observer.heads.values())) for observer in observers])


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
