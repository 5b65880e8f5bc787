"""Several requests over one cache: its keys and values are in memory once, and every request reads them.

Results are those of asking one by one, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.engines.cache import DocumentCache
from kvtool.model.model import Model

PASS_TOKENS = 1024
"""The most tokens of prompts that share a pass; one longer prompt has its own."""


@torch.no_grad()
def logits_after(
    model: Model, cache: DocumentCache, token_ids: Sequence[int], *, position: int | None = None
) -> Tensor:
    """Logits [S, V] float32 on the CPU at each of ``token_ids`` [S], fed after ``cache``, which is left as it was.

    ``position`` is that of the first of them, by default the number of tokens in the cache. For a cache that lost tokens to
    pruning it is larger.
    """
    with SequenceBatch(model, cache, position) as batch:
        return batch.feed([(0, token_ids)], every=[0]).float().cpu()


@torch.no_grad()
def generate_many(
    model: Model,
    cache: DocumentCache,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    *,
    position: int | None = None,
) -> list[list[int]]:
    """The model's greedy answer to each of ``prompts`` after ``cache``, which is left as it was.

    An answer has at most its ``max_tokens``, and ends before the token that ends the model's turn. ``position`` is as of
    ``logits_after``.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    stops = end_tokens(model)
    for group in _passes(prompts):
        with SequenceBatch(model, cache, position) as batch:
            feed = [(n, prompts[n]) for n in group]
            while feed:
                best = batch.feed(feed).argmax(-1).tolist()
                following = [
                    (n, [token]) for (n, _), token in zip(feed, best, strict=True) if token not in stops
                ]
                for n, (token,) in following:
                    answers[n].append(token)
                feed = [(n, ids) for n, ids in following if len(answers[n]) < max_tokens[n]]
    return answers


def end_tokens(model: Model) -> frozenset[int]:
    """The tokens that end the model's turn."""
    ids = model.model.generation_config.eos_token_id
    if ids is None:
        ids = model.tokenizer.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or [])


def _passes(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of ``prompts`` that share a pass."""
    group: list[int] = []
    tokens = 0
    for n, prompt in enumerate(prompts):
        if group and tokens + len(prompt) > PASS_TOKENS:
            yield group
            group, tokens = [], 0
        group.append(n)
        tokens += len(prompt)
    if group:
        yield group
