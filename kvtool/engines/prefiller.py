"""Prefills segments after one prefix, one segment in a pass or several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from kvtool.codecs import KV
from kvtool.engines.cache import DocumentCache
from kvtool.engines.kv import append_kv, slice_kv
from kvtool.engines.transformers import (
    STEP_TOKENS,
    TOLERANCE,
    Runner,
    at_once,
    feed,
    feed_packed,
    new_cache,
)
from kvtool.model.model import Model

log = logging.getLogger(__name__)

OnStep = Callable[[int], None]


class Prefiller:
    """Runs token ids after a prefix, which is computed once.

    Beside the model, memory holds the segment's KV and one step's activations. The KVs returned are views of one cache.
    ``run`` runs each pass of the model.
    """

    def __init__(
        self, model: Model, prefix_ids: Sequence[int], *, step: int = STEP_TOKENS, run: Runner = at_once
    ) -> None:
        self.model, self.step, self.run = model, step, run
        cache = new_cache(model, len(prefix_ids))
        feed(model, prefix_ids, cache, step=step, run=run)
        self.prefix = slice_kv(model, cache, 0, prefix_ids, 0) if prefix_ids else None
        self._packs: bool | None = None

    def one(self, token_ids: Sequence[int], on_step: OnStep = lambda _: None) -> KV:
        """The KV of one segment, fed in steps; ``on_step`` is called with the number of tokens of each."""
        cache = self._cache(len(token_ids))
        start = cache.get_seq_length()
        feed(self.model, token_ids, cache, step=self.step, on_step=on_step, run=self.run)
        return slice_kv(self.model, cache, start, token_ids, start)

    def many(self, rows: Sequence[Sequence[int]], on_step: OnStep = lambda _: None) -> list[KV]:
        """The KVs of several segments from one pass, equal to those of ``one`` up to the order of summation.

        The first pass is checked against ``one``. With a model that does not honour the mask, segments are prefilled one
        at a time, with a warning.
        """
        if len(rows) > 1 and self._packs is None:
            kvs = self._first_pack(rows)
        elif len(rows) > 1 and self._packs:
            kvs = self._packed(rows)
        else:
            return [self.one(row, on_step) for row in rows]
        on_step(sum(map(len, rows)))
        return kvs

    def _first_pack(self, rows: Sequence[Sequence[int]]) -> list[KV]:
        shortest = min(range(1, len(rows)), key=lambda n: len(rows[n]))
        kvs = None
        # A forward that knows no position_ids or no 4-D mask raises one of these.
        with suppress(TypeError, ValueError, IndexError, RuntimeError):
            kvs = self._packed(rows)
        self._packs = kvs is not None and _close(kvs[shortest], self.one(rows[shortest]))
        if kvs is not None and self._packs:
            return kvs
        log.warning(
            "%s: %s does not keep documents that share a pass apart; prefilling them one by one",
            self.model.name,
            self.model.config.model_type,
        )
        return self.many(rows)

    def _packed(self, rows: Sequence[Sequence[int]]) -> list[KV]:
        cache = self._cache(sum(map(len, rows)))
        start = position = cache.get_seq_length()
        self.run(lambda: feed_packed(self.model, rows, cache))
        kvs = []
        for row in rows:
            kvs.append(slice_kv(self.model, cache, start, row, position))
            start += len(row)
        return kvs

    def _cache(self, tokens: int) -> DocumentCache:
        if not self.prefix:
            return new_cache(self.model, tokens)
        cache = new_cache(self.model, self.prefix.n_tokens + tokens)
        append_kv(cache, self.prefix)
        return cache


def _close(a: KV, b: KV) -> bool:
    tolerance = TOLERANCE[a.dtype]
    return all(
        (x - y).abs().max() <= tolerance * y.abs().max()
        for p, q in zip(a.layers, b.layers, strict=True)
        for x, y in ((p.keys, q.keys), (p.values, q.values))
    )
