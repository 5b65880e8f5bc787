"""What tokens that stand behind a cache look at in it."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.engines.attention.capture import unwatchable, watching
from kvtool.engines.cache import DocumentCache
from kvtool.engines.recompute import OnLayer, run_again
from kvtool.model.model import Model


@torch.no_grad()
def regard(model: Model, cache: DocumentCache, token_ids: Tensor, before: OnLayer) -> Tensor:
    """The mean weight that tokens behind ``cache`` give each of its N, [L, Q, N] float32: by layer and query head.

    ``token_ids`` [S] int64 are run behind the cache, which is left as it was. ``before`` is called with a layer's index
    before it is read. Raises ModelError for a family whose attention cannot be watched.
    """
    n_tokens = cache.get_seq_length()
    behind = torch.arange(n_tokens, n_tokens + len(token_ids))
    for layer in cache.layers:
        layer.extend(len(token_ids))
    notes = [_Looked(n_tokens, len(token_ids)) for _ in cache.layers]
    try:
        with watching(model, notes):
            run_again(model, cache, torch.cat([cache.token_ids, token_ids]), behind, before=before)
    finally:
        for layer in cache.layers:
            layer.crop(-len(token_ids))
    if any(not note.heads for note in notes):
        raise unwatchable(model)
    return torch.stack([torch.cat(list(note.heads.values())) for note in notes])


class _Looked:
    """Weights that heads give, averaged over the tokens that look."""

    def __init__(self, n_tokens: int, looking: int) -> None:
        self.n_tokens, self.looking = n_tokens, looking
        self.heads: dict[int, Tensor] = {}

    def see(self, query: Tensor, mask: Tensor) -> None:
        pass

    def weigh(self, first: int, weights: Tensor) -> None:
        share = weights[..., : self.n_tokens].sum(1, dtype=torch.float32).cpu() / self.looking
        self.heads[first] = self.heads[first] + share if first in self.heads else share
