"""Which cached documents have the block of a hash.

vLLM 0.32 asks for a chunk of ``tokens_per_chunk`` tokens by the hash of the last block in it, which is chained over all tokens
before: ``hash_block_tokens(function, hash of the block before, tokens, extra keys)``, ``tokens_per_hash`` at a time. The first
block's chain begins with ``NONE_HASH``, a module's variable that the engine sets in the scheduler's process after it has built
its tiers, to a value of its own where the hash function is not cryptographic. Blocks of requests with an adapter, a cache salt,
pictures or prompt embeddings have extra keys in their hashes, and so are never found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.core import kv_cache_utils

from kvtool.connectors.lookup import CachedPrefix, Lookup
from kvtool.digest import digest_token_ids
from kvtool.store.prefix_index import FRESH, Entry


@dataclass(frozen=True)
class Hashing:
    """vLLM's chain of hashes. Those are kept that end with a chunk, of any of the ``chunk_tokens``."""

    function: Callable[[Any], bytes]
    tokens_per_hash: int
    chunk_tokens: frozenset[int]

    def ends(self, token_ids: Sequence[int], none_hash: bytes) -> Iterator[tuple[bytes, int]]:
        """The hash of each chunk's last block, and where it ends."""
        block_hash, size = none_hash, self.tokens_per_hash
        for stop in range(size, len(token_ids) + 1, size):
            tokens = token_ids[stop - size : stop]
            block_hash = kv_cache_utils.hash_block_tokens(self.function, block_hash, tokens)
            if any(stop % tokens == 0 for tokens in self.chunk_tokens):
                yield block_hash, stop


class BlockIndex:
    """The chunks that ``lookup`` can load, by hash. A thread follows the store; ``find`` never waits for it.

    It follows when it has been asked to since, ``FRESH`` seconds apart at least.
    """

    def __init__(self, lookup: Lookup, hashing: Hashing) -> None:
        self.lookup, self.hashing = lookup, hashing
        self._lock = threading.Lock()
        self._by_hash: dict[bytes, tuple[int, list[Entry]]] = {}
        self._hashes: dict[Entry, list[bytes]] = {}
        self._none_hash: bytes | None = None
        self._is_asked, self._closed = True, threading.Event()
        threading.Thread(target=self._follow, name="kvtool-blocks", daemon=True).start()

    def find(self, block_hash: bytes, preferred: Entry | None = None) -> tuple[Entry, int] | None:
        """A cache that has the block of this hash, and where in it the block ends; ``preferred`` if it is one.

        What could not be loaded a moment ago is not found.
        """
        with self._lock:
            if (held := self._by_hash.get(block_hash)) is None:
                return None
            stop, entries = held
            if preferred in entries:
                return preferred, stop
            usable = (entry for entry in entries if not self.lookup.is_avoided(entry.source))
            entry = next(usable, None)
        return None if entry is None else (entry, stop)

    def ask(self) -> None:
        """Has what the store has gained or lost looked for."""
        self._is_asked = True

    def close(self) -> None:
        self._closed.set()

    def _follow(self) -> None:
        while not self._closed.is_set():
            if self._is_asked or not self.lookup.index.is_complete:
                self._is_asked = False
                self.lookup.index.follow()
            self._take_over()
            self._closed.wait(FRESH if self.lookup.index.is_complete else FRESH / 10)

    def _take_over(self) -> None:
        """Hashes what the prefixes' index has found since, and forgets what it has lost."""
        if (none_hash := getattr(kv_cache_utils, "NONE_HASH", None)) is None:
            return
        entries = set(self.lookup.index.entries())
        kept = entries if none_hash == self._none_hash else set()
        self._none_hash = none_hash
        for entry in self._hashes.keys() - kept:
            self._forget(entry)
        for entry in entries - self._hashes.keys():
            if self._closed.is_set():
                return
            self._add(entry, none_hash)

    def _add(self, entry: Entry, none_hash: bytes) -> None:
        ends = list(self.hashing.ends(entry.token_ids.tolist(), none_hash))
        self._hashes[entry] = [block_hash for block_hash, _ in ends]
        with self._lock:
            for block_hash, stop in ends:
                self._by_hash.setdefault(block_hash, (stop, []))[1].append(entry)

    def _forget(self, entry: Entry) -> None:
        with self._lock:
            for block_hash in self._hashes.pop(entry):
                _, entries = self._by_hash[block_hash]
                entries.remove(entry)
                if not entries:
                    del self._by_hash[block_hash]


def found(entry: Entry, stop: int) -> CachedPrefix:
    """What is to be opened for an entry's tokens before ``stop``."""
    ids = entry.token_ids[:stop].tolist()
    return CachedPrefix(*entry.source, stop, digest_token_ids(ids))
