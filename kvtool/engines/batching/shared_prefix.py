"""Rows behind one cache: each is a request, what is asked behind the cache and what the model goes on with.

Rows are fed side by side in one pass, under a mask that shows each of them the cache and itself. They come and go: what one
has fed lies behind the cache, among what others have, and is forgotten when it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kvtool.engines import transformers as engine
from kvtool.engines.attention.parallel_encoding import reading
from kvtool.engines.cache import ROOM, DocumentCache
from kvtool.errors import ModelError
from kvtool.model.model import Model

_GONE = -2

Fed: TypeAlias = Sequence[tuple[int, Sequence[int]]]
"""Rows, each a number and its next tokens."""


@dataclass(frozen=True)
class Pass:
    """``token_ids`` [S] at ``positions`` [S], of which ``last`` [R] are each row's last; ``visible`` [S, N] are the keys that
    each sees, of rows ``owners`` [N] at ``key_positions`` [N], its own included."""

    token_ids: Tensor
    positions: Tensor
    last: Tensor
    visible: Tensor
    owners: Tensor
    key_positions: Tensor

    def masks(self, model: Model) -> Any:
        return engine.masks(model, self.visible, self.positions, self.key_positions)


class Rows:
    """``cache`` is left as it was at the end. ``position`` is that of the first token behind it, by default the number of
    tokens that it holds; a cache that lost tokens to pruning goes on further behind.

    Raises ``ModelError`` where the model has a sliding window and the cache has lost tokens.
    """

    def __init__(self, model: Model, cache: DocumentCache, position: int | None = None) -> None:
        self.model, self.cache = model, cache
        self.held = cache.get_seq_length()
        self.start = self.held if position is None else position
        if self.start != self.held and any(engine.windows(model)):
            raise ModelError(
                model.name,
                "has layers with a sliding window",
                (
                    "a cache that lost tokens to pruning cannot be read by them, since their places are not "
                    "known any more"
                ),
            )
        self.owners = torch.full((self.held,), engine.SHARED)
        self.key_positions = torch.arange(self.held)
        self.fed: dict[int, int] = {}
        self.seen: dict[int, int] = {}

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forgets what all rows have fed, also where a pass broke off."""
        for layer in self.cache.layers:
            layer.crop(min(0, self.held - layer.get_seq_length()))
        self.owners, self.key_positions = self.owners[: self.held], self.key_positions[: self.held]
        self.fed.clear()
        self.seen.clear()

    def feed(self, rows: Fed, *, every: bool = False) -> Tensor:
        """Logits at the last token of each row, or at ``every`` token."""
        one = self.next_pass(rows)
        device = engine.device_of(self.model)
        with engine.grouped_attention(self.model), reading(self.model, self.cache):
            out = self.model.model(
                input_ids=one.token_ids[None].to(device),
                position_ids=one.positions[None].to(device),
                attention_mask=one.masks(self.model),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=0 if every else one.last.to(device),
            )
        self.has_fed(one)
        return out.logits[0]  # type: ignore[no-any-return]

    def next_pass(self, rows: Fed) -> Pass:
        """The pass that feeds ``rows``; when the model has run it, tell ``has_fed``."""
        row = torch.cat([torch.full((len(ids),), n) for n, ids in rows])
        positions = torch.cat([self._next(n, len(ids)) for n, ids in rows])
        limits = torch.cat([torch.full((len(ids),), self.seen.get(n, self.held)) for n, ids in rows])
        owners = torch.cat([self.owners, row])
        key_positions = torch.cat([self.key_positions, positions])
        own = engine.own_row(owners, key_positions, row, positions)
        visible = own | (torch.arange(len(owners))[None, :] < limits[:, None])
        ids = torch.tensor([token for _, tokens in rows for token in tokens])
        last = torch.tensor([len(tokens) for _, tokens in rows]).cumsum(0) - 1
        return Pass(ids, positions, last, visible, owners, key_positions)

    def has_fed(self, one: Pass) -> None:
        self.owners, self.key_positions = one.owners, one.key_positions

    def join(self, row: int, seen: int) -> None:
        """A row that sees the first ``seen`` of the cache's tokens only, and stands right behind these."""
        self.seen[row] = seen

    def leave(self, row: int) -> None:
        """Forgets what ``row`` has fed."""
        self.seen.pop(row, None)
        if self.fed.pop(row, None) is None:
            return
        self.owners[self.owners == row] = _GONE
        kept = (self.owners != _GONE).nonzero()[:, 0]
        own = len(kept) - self.held
        # Every pass pays for what is left behind; moving the others together costs about as much as one.
        if not own or len(self.owners) - len(kept) > max(ROOM, own):
            self._keep(kept)

    def _keep(self, kept: Tensor) -> None:
        behind = kept[self.held :]
        for layer in self.cache.layers:
            for held in (layer.keys, layer.values):
                held[:, :, self.held : len(kept)] = held[:, :, behind.to(held.device)]
            layer.crop(len(kept) - len(self.owners))
        self.owners, self.key_positions = self.owners[kept], self.key_positions[kept]

    def _next(self, row: int, tokens: int) -> Tensor:
        first = self.seen.get(row, self.start) + self.fed.get(row, 0)
        self.fed[row] = self.fed.get(row, 0) + tokens
        return torch.arange(first, first + tokens)
