"""An index of blocks: where in a store the cache of a block of tokens lies, by the hash that an engine names it with.

Engines hash a block together with the hash of the block before it. So a hash stands for all tokens up to the block's end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
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
        self._keys: dict[str, list[tuple[Hashable, Block]]] = {}
        self._blocks: dict[Hashable, list[Block]] = {}

    def find(self, keys: Sequence[Hashable], skip: Callable[[Source], bool]) -> list[Block | None]:
        """A block for each of ``keys``, which follow each other; from as few sources as may be, none that ``skip`` names."""
        self.follow()
        with self._lock:
            candidates = [list(self._blocks.get(key, ())) for key in keys]
        found: list[Block | None] = []
        source = None
        # The source of a later block has the earlier ones too.
        for blocks in reversed(candidates):
            usable = [block for block in blocks if not skip(block.source)]
            same = [block for block in usable if block.source == source]
            block = next(iter(same or usable), None)
            source = block.source if block else None
            found.append(block)
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
            size = self.block_size
            entries = [
                (key, Block(source, range(n * size, (n + 1) * size)))
                for n, key in enumerate(self.chain(ids[: len(ids) // size * size]))
            ]
            with self._lock:
                self._keys.setdefault(document.name, []).extend(entries)
                for key, block in entries:
                    self._blocks.setdefault(key, []).append(block)

    def forget(self, name: str) -> None:
        """Leaves a document's blocks out."""
        with self._lock:
            for key, block in self._keys.pop(name, ()):
                self._blocks[key].remove(block)
                if not self._blocks[key]:
                    del self._blocks[key]
