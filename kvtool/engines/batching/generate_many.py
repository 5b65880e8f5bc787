"""Several requests over one cache: its keys and values are in memory once, and every request reads them.

Results are those of asking one by one, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvtool.engines.batching.shared_prefix import Rows
from kvtool.engines.cache import DocumentCache
from kvtool.model.model import Model

PASS_TOKENS = 1024
"""Tokens of prompts that share a pass, at most; one longer prompt has its own."""


@torch.no_grad()
def follow(
    model: Model, cache: DocumentCache, token_ids: Sequence[int], *, position: int | None = None
) -> Tensor:
    """Logits [S, V] float32 on the CPU at each of ``token_ids`` [S], fed behind ``cache``, which is left as it was.

    ``position`` is that of the first of them, by default the number of tokens that the cache holds; a cache that
    lost tokens to pruning goes on further behind.
    """
    with Rows(model, cache, position) as rows:
        return rows.feed([(0, token_ids)], every=True).float().cpu()


@torch.no_grad()
def answer_each(
    model: Model,
    cache: DocumentCache,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    *,
    position: int | None = None,
) -> list[list[int]]:
    """What the model says, greedily, to each of ``prompts`` behind ``cache``, which is left as it was.

    An answer has at most its ``max_tokens``, and ends before the token that ends the model's turn.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for some in _passes(prompts):
        with Rows(model, cache, position) as rows:
            fed = [(n, prompts[n]) for n in some]
            while fed:
                best = rows.feed(fed).argmax(-1).tolist()
                fed = [
                    (n, [token]) for (n, _), token in zip(fed, best, strict=True) if token not in ends(model)
                ]
                for n, (token,) in fed:
                    answers[n].append(token)
                fed = [(n, token) for n, token in fed if len(answers[n]) < max_tokens[n]]
    return answers


def ends(model: Model) -> frozenset[int]:
    """The tokens that end the model's turn."""
    found = model.model.generation_config.eos_token_id
    if found is None:
        found = model.tokenizer.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or [])


def _passes(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    some: list[int] = []
    tokens = 0
    for n, prompt in enumerate(prompts):
        if some and tokens + len(prompt) > PASS_TOKENS:
            yield some
            some, tokens = [], 0
        some.append(n)
        tokens += len(prompt)
    if some:
        yield some
