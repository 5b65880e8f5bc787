"""Manifests that others may change at the same time: read, change, replace if it is still what was read."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from kvtool.errors import StoreError
from kvtool.store.backends.writable import Conflict
from kvtool.store.manifest import Document

ATTEMPTS = 20
"""How often a manifest is read again that others keep changing."""

PAUSE = 0.2
"""Seconds at most before it is read again, by chance, so that two do not stay in step."""


class VersionedManifests(ABC):
    """The part of a destination that reads and changes documents. ``str`` of it is its address."""

    @abstractmethod
    def manifest(self, name: str) -> tuple[bytes, str] | None:
        """A document's manifest and its version; None if there is none."""

    @abstractmethod
    def swap(self, name: str, manifest: bytes, version: str | None) -> None:
        """Replaces the manifest of that version, or one that is missing. Raises ``Conflict`` if it is another by now."""

    def document(self, name: str) -> Document | None:
        return self._versioned(name)[0]

    def change(self, name: str, update: Callable[[Document | None], Document]) -> None:
        """As ``Destination.change``. Raises ``StoreError`` if others were always faster."""
        for _ in range(ATTEMPTS):
            before, version = self._versioned(name)
            after = update(before)
            if after == before:
                return
            try:
                self.swap(name, after.to_bytes(), version)
                return
            except Conflict:
                time.sleep(random.uniform(0, PAUSE))
        where = f"{self}: {name}"
        raise StoreError(where, f"was changed by others {ATTEMPTS} times meanwhile", "push again")

    def _versioned(self, name: str) -> tuple[Document | None, str | None]:
        found = self.manifest(name)
        if found is None:
            return None, None
        return Document.from_bytes(found[0], f"{self}: {name}"), found[1]
