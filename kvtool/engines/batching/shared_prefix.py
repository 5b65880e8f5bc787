"""Sequences after one cache: each is a request's prompt and answer.

They are fed side by side in one pass, under a mask that shows each of them the cache and itself. They come and go: the
tokens of one stand after the cache, among those of others, and are removed when it leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kvtool.engines.attention.cache_attention import cache_attention
from kvtool.engines.cache import ROOM, STEP, DocumentCache
from kvtool.engines.transformers import SHARED, device_of, masks, run_masked, same_row, windows
from kvtool.errors import ModelError
from kvtool.model.model import Model

_GONE = -2
"""The owner of tokens whose sequence has left."""

Feed: TypeAlias = Sequence[tuple[int, Sequence[int]]]
"""Sequences by their number, each with its next tokens."""


@dataclass(frozen=True)
class Pass:
    """The tensors of one pass over S tokens, and the N keys that there are in it.

    ``token_ids`` [S] stand at ``positions`` [S]; ``kept`` [K] are the indices of those whose logits are wanted. ``visible``
    [S, N] says which keys each token sees. Keys are those of sequences ``owners`` [N] at ``key_positions`` [N], the pass's own
    included.
    """

    token_ids: Tensor
    positions: Tensor
    kept: Tensor
    visible: Tensor
    owners: Tensor
    key_positions: Tensor

    def masks(self, model: Model) -> Any:
        return masks(model, self.visible, self.positions, self.key_positions)


class SequenceBatch:
    """Sequences after ``cache``, which ``close`` leaves as it was.

    ``position`` is that of the first token after the cache, by default the number of tokens in it. For a cache that has
    lost tokens to pruning it is larger. Raises ``ModelError`` where such a cache meets a sliding window.
    """

    def __init__(self, model: Model, cache: DocumentCache, position: int | None = None) -> None:
        self.model, self.cache = model, cache
        self.n_cached = cache.get_seq_length()
        self.start = self.n_cached if position is None else position
        if self.start != self.n_cached and any(windows(model)):
            raise ModelError(
                model.name,
                "has layers with a sliding window",
                "a cache that lost tokens to pruning cannot be read by them, since their places are not "
                "known any more",
            )
        self.owners = torch.full((self.n_cached,), SHARED)
        self.key_positions = torch.arange(self.n_cached)
        self.lengths: dict[int, int] = {}
        self.seen: dict[int, int] = {}

    def __enter__(self) -> SequenceBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes all sequences' tokens, also after a pass that broke off."""
        for layer in self.cache.layers:
            layer.crop(min(0, self.n_cached - layer.get_seq_length()))
        self.owners, self.key_positions = self.owners[: self.n_cached], self.key_positions[: self.n_cached]
        self.lengths.clear()
        self.seen.clear()

    def feed(self, feed: Feed, every: Collection[int] = ()) -> Tensor:
        """Logits at the last token of each sequence, and of those in ``every`` at all their tokens."""
        step, model = self.plan(feed, every), self.model
        kept = step.kept.to(device_of(model))
        with cache_attention(model, self.cache):
            out = run_masked(
                model, step.token_ids, step.positions, step.masks(model), self.cache, logits_to_keep=kept
            )
        self.commit(step)
        return out.logits[0]  # type: ignore[no-any-return]

    def plan(self, feed: Feed, every: Collection[int] = ()) -> Pass:
        """The pass that runs ``feed``. Once the model has run it, call ``commit``."""
        row = torch.cat([torch.full((len(ids),), n) for n, ids in feed])
        positions = torch.cat([self._next_positions(n, len(ids)) for n, ids in feed])
        limits = torch.cat([torch.full((len(ids),), self.seen.get(n, self.n_cached)) for n, ids in feed])
        owners = torch.cat([self.owners, row])
        key_positions = torch.cat([self.key_positions, positions])
        same = same_row(owners, key_positions, row, positions)
        visible = same | (torch.arange(len(owners))[None, :] < limits[:, None])
        ids = torch.tensor([token for _, tokens in feed for token in tokens])
        ends = list(accumulate(len(tokens) for _, tokens in feed))
        kept = torch.cat(
            [
                torch.arange(end - (len(tokens) if n in every else 1), end)
                for end, (n, tokens) in zip(ends, feed, strict=True)
            ]
        )
        return Pass(ids, positions, kept, visible, owners, key_positions)

    def commit(self, step: Pass) -> None:
        self.owners, self.key_positions = step.owners, step.key_positions

    def join(self, sequence: int, seen: int) -> None:
        """Adds a sequence that sees only the first ``seen`` of the cache's tokens, and stands right after these."""
        self.seen[sequence] = seen

    def leave(self, sequence: int) -> None:
        """Removes the tokens of ``sequence``."""
        self.seen.pop(sequence, None)
        if self.lengths.pop(sequence, None) is None:
            return
        self.owners[self.owners == sequence] = _GONE
        kept = (self.owners != _GONE).nonzero()[:, 0]
        n_kept = len(kept) - self.n_cached
        # Every pass pays for removed tokens; closing the gaps costs about as much as one pass. Beside a pruned document their
        # memory counts, too.
        limit = max(ROOM, n_kept) if self.cache.holds_all else STEP
        if not n_kept or len(self.owners) - len(kept) > limit:
            self._keep(kept)

    def _keep(self, kept: Tensor) -> None:
        after = kept[self.n_cached :]
        for layer in self.cache.layers:
            layer.keep(self.n_cached, after)
            if not layer.holds_all:
                layer.fit(STEP)
        self.owners, self.key_positions = self.owners[kept], self.key_positions[kept]

    def _next_positions(self, sequence: int, tokens: int) -> Tensor:
        first = self.seen.get(sequence, self.start) + self.lengths.get(sequence, 0)
        self.lengths[sequence] = self.lengths.get(sequence, 0) + tokens
        return torch.arange(first, first + tokens)
