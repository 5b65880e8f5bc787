"""Attention that a segment's tokens receive, and the queries that meet its keys.

A few tokens of the segment, the probes, are run again over the keys and values of all tokens.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from kvtool.codecs import Inputs
from kvtool.engines.attention.capture import capture_attention, capture_error, step_tokens
from kvtool.engines.cache import DocumentCache, refuse_pruned
from kvtool.engines.recompute import recompute_tokens
from kvtool.model.model import Model

PROBE_SHARE = 0.05
"""The share of a segment's tokens that are probes at its end, and the share drawn from the others."""

PROBES_AT_LEAST = 8
"""The least number of either kind of probe."""


def probe_tokens(n_tokens: int) -> Tensor:
    """ZipCache's probes (arXiv 2405.14256): the last 5 % of the tokens, and 5 % at random; [P] int64, ascending.

    They are always the same for a number of tokens. The last token is one of them.
    """
    share = max(PROBES_AT_LEAST, math.ceil(PROBE_SHARE * n_tokens))
    rest = max(0, n_tokens - share)
    drawn = random.Random(n_tokens).sample(range(rest), min(share, rest))
    return torch.tensor([*sorted(drawn), *range(rest, n_tokens)], dtype=torch.int64)


@torch.no_grad()
def observe(model: Model, cache: DocumentCache, token_ids: Tensor, probes: Tensor | None = None) -> Inputs:
    """``attention`` and ``queries`` of the segment ``token_ids`` [T] int64, the last T tokens of ``cache``.

    Both are tensors on the CPU, one for each layer:

    - ``attention`` [H, T] float32: for each key head and token of the segment, the mean weight that probes at or after
      the token give it, which is ZipCache's normalised attention score, over the query heads that share the key head.
      Tokens that no probe sees, in layers with a sliding window, get the mean of those that are seen.
    - ``queries`` [Q, P, D] float32: the probes' queries as they meet the keys, rotated.

    ``probes`` [P] int64 are indices of tokens of the segment, by default ``probe_tokens``. With all of them, ``attention``
    is exact, and costs about as much as prefilling the segment. The cache is not changed. Raises ``ModelError`` for a
    family whose attention cannot be captured.
    """
    refuse_pruned(cache, "measuring attention received")
    n_tokens = len(token_ids)
    start = len(cache.token_ids) - n_tokens
    positions = start + (probe_tokens(n_tokens) if probes is None else probes)
    observers = [_ReceivedAttention(layer.keys.shape[1], start, n_tokens) for layer in cache.layers]
    step = step_tokens(len(cache.token_ids))
    with capture_attention(model, observers):
        for first in range(0, len(positions), step):
            # The keys and values of the probes equal those in the cache.
            recompute_tokens(model, cache, cache.token_ids, positions[first : first + step], write=False)
    if any(sum(query.shape[1] for query in observer.queries) != len(positions) for observer in observers):
        raise capture_error(model)
    layers = zip(observers, cache.layers, strict=True)
    queries = [observer.all_queries(layer.keys) for observer, layer in layers]
    return {"attention": [observer.attention() for observer in observers], "queries": queries}


def fill_unseen(score: Tensor, seen: Tensor) -> Tensor:
    """``score`` [..., T], with the mean of the others for tokens that no query saw; ``seen`` is [T] bool."""
    if seen.any() and not seen.all():
        score[..., ~seen] = score[..., seen].mean(-1, keepdim=True)
    return score


class _ReceivedAttention:
    """The probes' queries, and the weights that they give each token of the segment, summed."""

    def __init__(self, heads: int, start: int, n_tokens: int) -> None:
        self.heads, self.start = heads, start
        self.queries: list[Tensor] = []
        self.weight = torch.zeros(0, n_tokens)
        self.seen = torch.zeros(n_tokens)

    def on_queries(self, query: Tensor, mask: Tensor, scaling: float | None) -> None:
        self.queries.append(query.float().cpu())
        self.seen += mask[:, self.start :].sum(0).cpu()
        if not len(self.weight):
            self.weight = self.weight.new_zeros(len(query), self.weight.shape[1])

    def on_weights(self, first: int, weights: Tensor) -> None:
        received = weights[..., self.start :].sum(1, dtype=torch.float32)
        self.weight[first : first + len(received)] += received.cpu()

    def attention(self) -> Tensor:
        score = self.weight.view(self.heads, -1, self.weight.shape[1]).mean(1) / self.seen.clamp(min=1)
        return fill_unseen(score, self.seen > 0)

    def all_queries(self, keys: Tensor) -> Tensor:
        if not self.queries:
            return keys.new_zeros(keys.shape[1], 0, keys.shape[3]).float()
        return torch.cat(self.queries, 1)
