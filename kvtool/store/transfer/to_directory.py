"""Documents into a store in a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from kvtool import limits
from kvtool.artifact.reading import reading
from kvtool.codecs import Calibration
from kvtool.errors import StoreError
from kvtool.store.backends.counted import OnBytes
from kvtool.store.base import Store
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document, Variant
from kvtool.store.remote import RemoteStore
from kvtool.store.sealing import key_of, not_encrypted


class ToDirectory:
    """``store``, which is made when something is first written; with ``replace``, broken manifests count as missing."""

    at_once = 8

    def __init__(self, store: LocalStore, replace: bool = False) -> None:
        self.store, self.replace = store, replace

    def __str__(self) -> str:
        return str(self.store)

    def document(self, name: str) -> Document | None:
        try:
            # Whoever has signed it: what is copied may bring the signatures.
            return self.store.stored(name) if name in self.store else None
        except DocumentMissing:
            return None
        except StoreError:
            if self.replace:
                return None
            raise

    def holds(self, variant: Variant) -> bool:
        return self.store.holds_whole(variant)

    def writing(self) -> AbstractContextManager[None]:
        return self.store.writing()

    def encrypt_as(self, source: Store) -> None:
        if source.encrypted_with and not self.store.encrypted_with:
            if self.store.is_made:
                raise not_encrypted(self.store, source)
            key_of(source.encrypted_with)
            self.store.encrypt_with(source.encrypted_with)

    def take(self, source: Store, variant: Variant, on_bytes: OnBytes) -> None:
        if isinstance(source, RemoteStore):
            source.fetch(variant, self.store, on_bytes)
            return
        path = source.locate_artifact(variant.artifact)
        calibrations = _Copied(self.store, source)
        self.store.receive(variant.artifact, chunks_of(path, on_bytes), calibrations)

    def change(self, name: str, update: Callable[[Document | None], Document]) -> None:
        with self.store.changing():
            self.store.accept(update(self.document(name)))


class _Copied(Mapping[str, Calibration]):
    """A store's calibrations; missing ones are copied from another store when they are asked for."""

    def __init__(self, into: LocalStore, source: Store) -> None:
        self.into, self.source = into, source

    def __getitem__(self, digest: str) -> Calibration:
        if digest not in self.into.calibrations:
            self.into.put_calibration(self.source.calibrations[digest])
        return self.into.calibrations[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self.into.calibrations)

    def __len__(self) -> int:
        return len(self.into.calibrations)


def chunks_of(path: Path, on_bytes: OnBytes) -> Iterator[bytes]:
    """A file's bytes in pieces, which ``on_bytes`` counts once they have been taken."""
    with reading(path), path.open("rb") as file:
        while chunk := file.read(limits.MIB):
            yield chunk
            on_bytes(len(chunk))
