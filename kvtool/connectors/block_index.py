"""An index of blocks: where in a store the cache of a block of tokens lies, by the hash that an engine names it with.

Engines hash a block together with the hash of the block before it. So a hash stands for all tokens up to the block's end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

import numpy as np

from kvtool.artifact.read import Artifact
from kvtool.store.base import Store
from kvtool.store.headers import segment_headers
from kvtool.store.manifest import Document, Variant
from kvtool.store.prefix_index import Choose, Followed

Chain: TypeAlias = Callable[[Sequence[int]], Sequence[Hashable]]
"""Gives the hash of each whole block of some token ids, as the engine computes it."""


@dataclass(frozen=True)
class Source:
    """A segment's cache after its prefix: the ``artifacts`` that hold it, by digest, prefix first.

    A digest covers every byte. So whatever a store gives for it later is what was indexed, model and tokens included.
    """

    document: str
    artifacts: tuple[str, ...]
    n_tokens: int
    variants: tuple[Variant, ...] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.document

    def open(self, store: Store) -> list[Artifact]:
        """The artifacts. Raises ``KvtoolError`` if one is gone or broken."""
        return [store.open_artifact(variant) for variant in self.variants]


@dataclass(frozen=True)
class Block:
    """The tokens of a source that a block has."""

    source: Source
    tokens: range


class BlockIndex(Followed):
    """The blocks, of ``block_size`` tokens, of those segments of ``store`` that ``choose`` does not leave out.

    It follows the store in the background: no look-up waits for it.
    """

    def __init__(self, store: Store, choose: Choose, chain: Chain, block_size: int) -> None:
        super().__init__(store, in_background=True)
        self.choose, self.chain, self.block_size = choose, chain, block_size
        self._lock = threading.Lock()
        self._keys: dict[str, list[tuple[Source, Sequence[Hashable]]]] = {}
        self._sources: dict[Hashable, dict[Source, int]] = {}

    def find(self, keys: Sequence[Hashable], skip: Callable[[Source], bool]) -> list[Block | None]:
        """A block for each of ``keys``, which follow each other; from as few sources as may be, none that ``skip`` names."""
        self.follow()
        found: list[Block | None] = []
        source: Source | None = None
        skipped = cache(skip)
        with self._lock:
            # The source of a later block has the earlier ones too.
            for key in reversed(keys):
                numbers = self._sources.get(key, {})
                if source not in numbers:
                    source = next((one for one in numbers if not skipped(one)), None)
                found.append(None if source is None else self._block(source, numbers[source]))
        return found[::-1]

    def add(self, document: Document) -> None:
        """Indexes a document's segments."""
        for segment in document.segments:
            if (name := self.choose(document, segment)) is None:
                continue
            variants = document.artifacts_of(segment, name)
            parts = segment_headers(self.store, document, segment, name)
            # A blend that was kept is not what a prefill of its tokens gives.
            if not all(part.is_exact for part in parts):
                continue
            ids = np.concatenate([part.token_ids.numpy() for part in parts]).tolist()
            source = Source(document.name, tuple(v.artifact for v in variants), len(ids), variants)
            keys = self.chain(ids[: len(ids) // self.block_size * self.block_size])
            with self._lock:
                self._keys.setdefault(document.name, []).append((source, keys))
                for number, key in enumerate(keys):
                    self._sources.setdefault(key, {})[source] = number

    def forget(self, name: str) -> None:
        """Leaves a document's blocks out."""
        with self._lock:
            for source, keys in self._keys.pop(name, ()):
                for key in keys:
                    numbers = self._sources.get(key, {})
                    numbers.pop(source, None)
                    if not numbers:
                        self._sources.pop(key, None)

    def _block(self, source: Source, number: int) -> Block:
        return Block(source, range(number * self.block_size, (number + 1) * self.block_size))
