"""Several requests over one cache: its keys and values are in memory once, and every request reads them.

A row is one request: what is asked behind the cache, and what the model goes on with. Rows are fed side by side in one
pass, under a mask that shows each of them the cache and itself. Without the mask's cost a batch would copy the cache
for each row. Results are those of asking one by one, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..errors import ModelError
from ..model import Model
from . import transformers as engine
from .cache import DocumentCache
from .parallel import reading

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
    with _Rows(model, cache, position) as rows:
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
        with _Rows(model, cache, position) as rows:
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


class _Rows:
    """Rows behind one cache, fed token by token; what was fed is forgotten at the end."""

    def __init__(self, model: Model, cache: DocumentCache, position: int | None) -> None:
        self.model, self.cache = model, cache
        self.held = cache.get_seq_length()
        self.start = self.held if position is None else position
        if self.start != self.held and any(engine.windows(model)):
            raise ModelError(
                f"{model.name}: has layers with a sliding window; a cache that lost tokens to pruning cannot be read by "
                "them, since their places are not known any more"
            )
        self.owners = torch.full((self.held,), engine.SHARED)
        self.key_positions = torch.arange(self.held)
        self.fed: dict[int, int] = {}

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if added := self.cache.get_seq_length() - self.held:
            self.cache.crop(-added)

    def feed(self, rows: Sequence[tuple[int, Sequence[int]]], *, every: bool = False) -> Tensor:
        """Logits at the last token of each row, or at ``every`` token. A row is its number and its next tokens."""
        row = torch.cat([torch.full((len(ids),), n) for n, ids in rows])
        positions = torch.cat([self._next(n, len(ids)) for n, ids in rows])
        self.owners = torch.cat([self.owners, row])
        self.key_positions = torch.cat([self.key_positions, positions])
        device = engine.device_of(self.model)
        ids = torch.tensor([[token for _, tokens in rows for token in tokens]], device=device)
        last = torch.tensor([len(tokens) for _, tokens in rows], device=device).cumsum(0) - 1
        with engine.grouped_attention(self.model), reading(self.model, self.cache):
            out = self.model.model(
                input_ids=ids,
                position_ids=positions[None].to(device),
                attention_mask=engine.row_masks(self.model, self.owners, self.key_positions, row, positions),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=0 if every else last,
            )
        return out.logits[0]  # type: ignore[no-any-return]

    def _next(self, row: int, tokens: int) -> Tensor:
        first = self.start + self.fed.get(row, 0)
        self.fed[row] = self.fed.get(row, 0) + tokens
        return torch.arange(first, first + tokens)


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
