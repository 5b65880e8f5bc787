"""Pages by SGLang's keys, out of a kvtool store. Needs no sglang.

No call raises, and none waits longer than ``max_load_seconds``, however many segments it needs. What cannot be served is a
miss with a line in the log.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvtool.connectors.block_index import BlockIndex, Chain, Source
from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.sglang.pages import Pages
from kvtool.connectors.sglang.rows import decode, rows_nbytes
from kvtool.connectors.sglang.settings import WHERE, Settings
from kvtool.connectors.shared_loads import Bounds, SharedLoads
from kvtool.connectors.usable import Usable
from kvtool.errors import UsageError
from kvtool.store.base import Store


@dataclass(frozen=True)
class Engine:
    """What SGLang has: its ``model``, and its own ``chain`` of page hashes.

    ``in_pairs`` says how the channels of latent attention's rotated part lie: those that turn together side by side, or all first
    ones before all second ones.
    """

    model: EngineModel
    chain: Chain
    in_pairs: bool = True


class Tier:
    """The pages of ``store`` that a process of SGLang can use. It holds decoded segments, for a request asks page after page."""

    def __init__(self, store: Store, engine: Engine, pages: Pages, settings: Settings) -> None:
        self.store, self.engine, self.pages, self.settings = store, engine, pages, settings
        usable = Usable(store, engine.model, settings.variant)
        self.index = BlockIndex(store, usable, engine.chain, pages.n_tokens)
        bounds = Bounds(settings.memory, settings.max_load_seconds, settings.threads)
        self.loads: SharedLoads[Source, Tensor] = SharedLoads(self._load, self._size, bounds)

    def held(self, keys: Sequence[str]) -> int:
        """How many of the first ``keys`` the store has."""
        found = self.index.find(keys, self.loads.is_avoided)
        return next((n for n, block in enumerate(found) if block is None), len(found))

    def read(self, keys: Sequence[str], places: Sequence[Tensor]) -> int:
        """Fills ``places``, as ``Pages`` gives them, with the pages of ``keys``, and says how many of the first it has filled.

        The others may hold anything.
        """
        blocks = self.index.find(keys, self.loads.is_avoided)
        until = time.monotonic() + self.settings.max_load_seconds
        for n, (block, place) in enumerate(zip(blocks, places, strict=True)):
            if block is None or (rows := self.loads.get(block.source, until)) is None:
                return n
            place.copy_(rows[:, :, block.tokens.start : block.tokens.stop])
        return len(places)

    def close(self) -> None:
        """Frees decoded segments, and loads no more."""
        self.loads.close()

    def _size(self, source: Source) -> int:
        nbytes = rows_nbytes(self.pages, source.n_tokens)
        if nbytes > self.settings.memory:
            reason = f"has {nbytes} bytes of keys and values, more than kvtool.memory_gib"
            raise UsageError(source.document, reason, f"raise it in {WHERE}")
        return nbytes

    def _load(self, source: Source) -> Tensor:
        with self.store.using(source.document):
            parts = source.open(self.store)
            return decode(parts, self.pages, in_pairs=self.engine.in_pairs, threads=self.settings.threads)
