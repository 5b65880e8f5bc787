"""Which of LMCache's chunks are of a store's documents: their token ids and positions, by the chunk's hash."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtool.connectors.lmcache.chunk import ChunkKey
from kvtool.connectors.lmcache.layout import ChunkTokens
from kvtool.errors import KvtoolError
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import Document

FRESH = 5.0
"""Seconds for which the store is believed to have no other documents."""

HashChunks = Callable[[Sequence[int]], Sequence[bytes]]
"""LMCache's hashes of the whole chunks that token ids begin with, each over all tokens up to its end."""

_log = logging.getLogger(__name__)


@dataclass
class KnownChunks:
    """The chunks of ``store``'s documents that the model of ``fingerprint`` made, which LMCache calls ``model_name``.

    A prompt that begins as a document does, its prefix included, has the same chunks. ``hash_chunks`` hashes them as the
    server does, ``chunk_size`` tokens each.
    """

    store: Store
    fingerprint: str
    model_name: str
    hash_chunks: HashChunks
    chunk_size: int = 256
    _chunks: dict[bytes, ChunkTokens] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[str, Document] = field(default_factory=dict, init=False, repr=False)
    _looked: float = field(default=-math.inf, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def find(self, key: ChunkKey) -> ChunkTokens | None:
        """The tokens of a chunk; None for one that no document has, or that is another model's."""
        if key.model_name != self.model_name:
            return None
        with self._lock:
            if key.chunk_hash not in self._chunks and time.monotonic() - self._looked >= FRESH:
                self._follow()
            return self._chunks.get(key.chunk_hash)

    def _follow(self) -> None:
        for name in self.store:
            try:
                document = self.store[name]
                if self._seen.get(name) != document:
                    self._seen[name] = document
                    if document.model["fingerprint"] == self.fingerprint:
                        self._add(document)
            except KvtoolError as error:
                _log.warning("chunks of %s are unknown: %s", name, error)
        self._looked = time.monotonic()

    def _add(self, document: Document) -> None:
        for index in range(len(document.segments)):
            parts = headers_of(self.store).parts(document.name, document.variants[0], index)
            rope = dict(parts[-1].contents.rope)
            self._add_tokens(torch.cat([part.token_ids for part in parts]), rope)

    def _add_tokens(self, token_ids: Tensor, rope: dict[str, object]) -> None:
        for number, chunk_hash in enumerate(self.hash_chunks(token_ids.tolist())):
            start = number * self.chunk_size
            self._chunks[chunk_hash] = ChunkTokens(token_ids[start : start + self.chunk_size], start, rope)
