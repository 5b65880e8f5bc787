"""The blocks of a store by vLLM's hashes.

vLLM 0.32 hashes a block, of ``tokens_per_hash``, as ``hash_block_tokens(function, hash of the block before, tokens, extra
keys)``. The chain begins with ``NONE_HASH``, a module's variable that the engine sets in the scheduler's process once it has
built its tiers: of a cryptographic function always to the same value, unless ``PYTHONHASHSEED`` is set, of others to a random
one. Blocks of requests with an adapter, a cache salt, pictures or prompt embeddings have extra keys in their hashes, and are
not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm.v1.core import kv_cache_utils

from kvtool.connectors.block_index import Block, BlockIndex, Source
from kvtool.store.base import Store
from kvtool.store.prefix_index import Choose


@dataclass(frozen=True)
class Hashing:
    """vLLM's chain of hashes."""

    function: Callable[[Any], bytes]
    tokens_per_hash: int

    def none_hash(self) -> bytes:
        """What chains begin with; what they are going to, where the engine has not set it yet."""
        if (known := getattr(kv_cache_utils, "NONE_HASH", None)) is not None:
            return bytes(known)
        return self.function(kv_cache_utils.resolve_none_hash_seed(self.function))

    def chain(self, none_hash: bytes, token_ids: Sequence[int]) -> list[bytes]:
        """The hash of each whole block."""
        hashes: list[bytes] = []
        size, before = self.tokens_per_hash, none_hash
        for start in range(0, len(token_ids) - size + 1, size):
            tokens = token_ids[start : start + size]
            before = kv_cache_utils.hash_block_tokens(self.function, before, tokens)
            hashes.append(before)
        return hashes


class HashedBlocks:
    """The blocks of those segments of ``store`` that ``choose`` does not leave out, as long as hashes mean the same."""

    def __init__(self, store: Store, choose: Choose, hashing: Hashing) -> None:
        self.store, self.choose, self.hashing = store, choose, hashing
        self._none_hash = hashing.none_hash()
        self._index = self._of(self._none_hash)

    def find(self, hashes: Sequence[bytes], skip: Callable[[Source], bool]) -> list[Block | None]:
        """As ``BlockIndex.find``. Never waits."""
        if (none_hash := self.hashing.none_hash()) != self._none_hash:
            self._none_hash, self._index = none_hash, self._of(none_hash)
        return self._index.find(hashes, skip)

    def follow(self, seconds: float) -> None:
        """Looks through the store for the first time, for so long at most; goes on in the background."""
        self._index.look_through(seconds)

    def _of(self, none_hash: bytes) -> BlockIndex:
        chain = partial(self.hashing.chain, none_hash)
        return BlockIndex(self.store, self.choose, chain, self.hashing.tokens_per_hash)
