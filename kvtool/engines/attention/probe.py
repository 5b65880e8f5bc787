"""Attention that a segment's tokens receive, and queries that meet its keys, measured over the stored segment.

A few tokens of the segment, the probes, are run again over the keys and values that are stored for all tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.codecs import Inputs
from kvtool.engines.attention.capture import step_tokens, unwatchable, watching
from kvtool.engines.recompute import run_again
from kvtool.model.model import Model

SHARE, AT_LEAST = 0.05, 8
"""Of a segment's tokens, how many of the last are probes, and how many of the others."""


def probe_tokens(n_tokens: int) -> Tensor:
    """ZipCache's probes (arXiv 2405.14256): the last 5 % of the tokens, and 5 % at random; [P] int64, ascending.

    Always the same ones for a number of tokens. The last token is one of them.
    """
    share = max(AT_LEAST, math.ceil(SHARE * n_tokens))
    rest = max(0, n_tokens - share)
    drawn = random.Random(n_tokens).sample(range(rest), min(share, rest))
    return torch.tensor([*sorted(drawn), *range(rest, n_tokens)], dtype=torch.int64)


@torch.no_grad()
def observe(model: Model, parts: Sequence[Artifact], probes: Tensor | None = None) -> Inputs:
    """``attention`` and ``queries`` of the last of ``parts``, raw artifacts that follow one another, as tensors on
    the CPU, one for each layer:

    - ``attention`` [H, T] float32: for each key head and token of the segment the mean weight that probes at or
      behind it give it, which is ZipCache's normalised attention score, over the query heads that share the
      key head. Tokens that no probe sees, in layers with a sliding window, get the mean of those that are
      seen.
    - ``queries`` [Q, P, D] float32: the probes' queries as they meet the keys, rotated.

    ``probes`` [P] int64 are indices of tokens of the segment, by default ``probe_tokens``. With all of them,
    ``attention`` is exact, and costs about what prefilling the segment does.

    Raises MismatchError and ArtifactError as ``load_cache`` does; ModelError for a family whose attention
    cannot be watched.
    """
    cache = load_cache(parts, model)
    token_ids, n_tokens = cache.token_ids, len(parts[-1].token_ids)
    start = len(token_ids) - n_tokens
    positions = start + (probe_tokens(n_tokens) if probes is None else probes)
    notes = [_Received(heads=layer.keys.shape[1], start=start, n_tokens=n_tokens) for layer in cache.layers]
    step = step_tokens(len(token_ids))
    with watching(model, notes):
        for first in range(0, len(positions), step):
            # The keys and values of the probes equal those that are stored.
            run_again(model, cache, token_ids, positions[first : first + step], write=False)
    if any(sum(query.shape[1] for query in note.queries) != len(positions) for note in notes):
        raise unwatchable(model)
    return {
        "attention": [note.attention() for note in notes],
        "queries": [note.all_queries(layer.keys) for note, layer in zip(notes, cache.layers, strict=True)],
    }


def filled(score: Tensor, seen: Tensor) -> Tensor:
    """``score`` [..., T], where tokens that nobody saw, ``seen`` [T], have the mean of the others."""
    if seen.any() and not seen.all():
        score[..., ~seen] = score[..., seen].mean(-1, keepdim=True)
    return score


class _Received:
    """The probes' queries, and what they give each token of the segment, summed."""

    def __init__(self, heads: int, start: int, n_tokens: int) -> None:
        self.heads, self.start = heads, start
        self.queries: list[Tensor] = []
        self.weight = torch.zeros(0, n_tokens)
        self.seen = torch.zeros(n_tokens)

    def see(self, query: Tensor, mask: Tensor) -> None:
        self.queries.append(query.float().cpu())
        self.seen += mask[:, self.start :].sum(0).cpu()
        if not len(self.weight):
            self.weight = self.weight.new_zeros(len(query), self.weight.shape[1])

    def weigh(self, first: int, weights: Tensor) -> None:
        received = weights[..., self.start :].sum(1, dtype=torch.float32)
        self.weight[first : first + len(received)] += received.cpu()

    def attention(self) -> Tensor:
        score = self.weight.view(self.heads, -1, self.weight.shape[1]).mean(1) / self.seen.clamp(min=1)
        return filled(score, self.seen > 0)

    def all_queries(self, keys: Tensor) -> Tensor:
        return (
            torch.cat(self.queries, 1)
            if self.queries
            else keys.new_zeros(keys.shape[1], 0, keys.shape[3]).float()
        )
