"""How a store keeps its files: as they are, encrypted with its key, or as they came. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvtool.artifact.sealed import seal, sealed_size, unseal
from kvtool.artifact.store_key import ENCRYPTION_KEY, StoreKey, store_keys
from kvtool.errors import StoreError


@dataclass(frozen=True)
class Sealing:
    """``encrypted_with`` is a key's id. A cache ``keeps`` files as another store has them, and needs no key for that."""

    encrypted_with: str | None = None
    keeps: bool = False

    def stored(self, chunks: Iterable[bytes | memoryview], where: object) -> Iterator[bytes | memoryview]:
        """The bytes to write of a file that comes in ``chunks``, sealed or not. Raises ``StoreError`` without the key."""
        if self.keeps:
            yield from chunks
            return
        plain = unseal(chunks, where)
        yield from seal(plain, key_of(self.encrypted_with)) if self.encrypted_with else plain

    def size(self, nbytes: int) -> int:
        """Bytes of the stored file of an artifact of ``nbytes``."""
        return sealed_size(nbytes) if self.encrypted_with else nbytes


def not_encrypted(store: object, source: object) -> StoreError:
    """The error for copying documents of an encrypted store into one that is there and is not, or may not be, encrypted."""
    remedy = "name a new store, or copy with --decrypt if that is meant"
    return StoreError(str(store), f"gets artifacts as they are, and {source} is encrypted", remedy)


def key_of(id: str) -> StoreKey:
    """The key of that id. Raises ``StoreError`` if the environment does not have it."""
    keys = store_keys()
    if id not in keys:
        given = f"those given are {', '.join(keys)}" if keys else "none is given"
        raise StoreError(
            f"key {id}",
            f"is needed for this encrypted store, and {given}",
            f"name its file in {ENCRYPTION_KEY}",
        )
    return keys[id]
