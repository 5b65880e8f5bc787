"""What a store holds of the documents that a lock names."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from kvtool.errors import StoreError
from kvtool.pipeline.lock import LockedDocument
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.manifest import Document


class Lack(StrEnum):
    """Why a store does not hold a document as its lock says, in words."""

    ABSENT = "is not in the store"
    BROKEN = "has a broken manifest"
    OTHER = "is another in the store than in the lock"
    NO_ARTIFACT = "has no whole artifact in the store"


class Holdings:
    """The documents of ``catalog`` as they are when they are first asked for: each manifest is read once."""

    def __init__(self, catalog: LocalCatalog) -> None:
        self.catalog = catalog
        self._documents: dict[str, Document | None] = {}

    def lacking(self, name: str, entry: LockedDocument, variants: Collection[str]) -> Lack | None:
        """Why the store does not hold what the lock says, of some variants; None if it does."""
        if not entry.segments:
            return None
        try:
            document = self._read(name)
        except StoreError:
            return Lack.BROKEN
        if document is None:
            return Lack.ABSENT
        if LockedDocument.of(entry.source, document, variants) != entry.only(variants):
            return Lack.OTHER
        return None if self.catalog.state(document, variants) else Lack.NO_ARTIFACT

    def document(self, name: str) -> Document | None:
        """The document; None if it is missing or its manifest is broken."""
        try:
            return self._read(name)
        except StoreError:
            return None

    def _read(self, name: str) -> Document | None:
        if name not in self._documents:
            # Whoever has signed it: what another put there is another, and not broken.
            self._documents[name] = self.catalog.stored(name) if name in self.catalog else None
        return self._documents[name]
