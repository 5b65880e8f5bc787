"""The contract of destinations: stores that documents are copied into."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from kvtool.store.backends.counted import OnBytes
from kvtool.store.base import Store
from kvtool.store.manifest import Document, Variant


class Destination(Protocol):
    """Methods are called from any thread, those that write within ``writing``. All raise ``StoreError``.

    ``at_once`` artifacts are taken at a time.
    """

    at_once: int

    def __str__(self) -> str:
        """The store's address."""

    def document(self, name: str) -> Document | None:
        """The document of that name as it is now."""

    def holds(self, variant: Variant) -> bool:
        """Whether the artifact is there."""

    def writing(self) -> AbstractContextManager[None]:
        """Makes the store where there is none."""

    def encrypt_as(self, source: Store) -> None:
        """Lets a new store be encrypted with the key of ``source``.

        Raises ``StoreError`` for one that is there and not encrypted, while ``source`` is.
        """

    def take(self, source: Store, variant: Variant, on_bytes: OnBytes) -> None:
        """Copies an artifact, and before it the calibrations that it names; nothing that is not what it claims is kept."""

    def change(self, name: str, update: Callable[[Document | None], Document]) -> None:
        """Puts ``update`` of the document as it is then in its place, so that of two writers' changes none is lost.

        ``update`` may be called several times, and what it raises passes.
        """
