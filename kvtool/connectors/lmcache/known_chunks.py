"""Which of LMCache's chunks are of a store's documents: their token ids and positions, by the chunk's hash."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvtool.connectors.lmcache.chunk import ChunkKey
from kvtool.connectors.lmcache.layout import ChunkTokens
from kvtool.store.base import Store
from kvtool.store.headers import segment_headers
from kvtool.store.manifest import Document
from kvtool.store.prefix_index import Followed

HashChunks = Callable[[Sequence[int]], Sequence[bytes]]
"""LMCache's hashes of the whole chunks that token ids begin with, each over all tokens up to its end."""


@dataclass(frozen=True)
class Hashing:
    """How the server hashes: ``chunks`` of ``size`` tokens each."""

    chunks: HashChunks
    size: int = 256


class KnownChunks(Followed):
    """The chunks of ``store``'s documents that the model of ``fingerprint`` made, which LMCache calls ``model_name``.

    A prompt that begins as a document does, its prefix included, has the same chunks. It follows the store in the background: no
    chunk waits for it.
    """

    def __init__(self, store: Store, fingerprint: str, model_name: str, hashing: Hashing) -> None:
        super().__init__(store, in_background=True)
        self.fingerprint, self.model_name, self.hashing = fingerprint, model_name, hashing
        self._lock = threading.Lock()
        self._hashes: dict[str, set[bytes]] = {}
        self._chunks: dict[bytes, dict[str, ChunkTokens]] = {}

    def find(self, key: ChunkKey) -> ChunkTokens | None:
        """The tokens of a chunk; None for one that no document has, as far as is known, or that is another model's."""
        if key.model_name != self.model_name:
            return None
        self.follow()
        with self._lock:
            return next(iter(self._chunks.get(key.chunk_hash, {}).values()), None)

    def add(self, document: Document) -> None:
        """Takes a document's chunks in."""
        if document.model["fingerprint"] != self.fingerprint:
            return
        for segment in document.segments:
            parts = segment_headers(self.store, document, segment, document.variants[0])
            rope = dict(parts[-1].contents.rope)
            token_ids = torch.cat([part.token_ids for part in parts])
            hashes = self.hashing.chunks(token_ids.tolist())
            with self._lock:
                for number, chunk_hash in enumerate(hashes):
                    start = number * self.hashing.size
                    tokens = ChunkTokens(token_ids[start : start + self.hashing.size], start, rope)
                    self._hashes.setdefault(document.name, set()).add(chunk_hash)
                    self._chunks.setdefault(chunk_hash, {})[document.name] = tokens

    def forget(self, name: str) -> None:
        """Leaves out the chunks that no other document has."""
        with self._lock:
            for chunk_hash in self._hashes.pop(name, ()):
                documents = self._chunks[chunk_hash]
                del documents[name]
                if not documents:
                    del self._chunks[chunk_hash]
