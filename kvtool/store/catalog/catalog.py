"""The contract of catalogs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TypeVar, overload

from kvtool.errors import StoreError
from kvtool.store.layout import manifest_file
from kvtool.store.manifest import Document
from kvtool.store.trust.policy import TrustPolicy

T = TypeVar("T")


class Catalog(Mapping[str, Document]):
    """A store's documents by name.

    Methods that raise ``NotImplementedError`` are for subclasses to write. ``Store`` must not be abstract, since type
    checkers would refuse ``Store(address)`` then.

    ``trust`` says whose signatures its documents must have.
    """

    trust: TrustPolicy

    def __getitem__(self, name: str) -> Document:
        """The document's manifest. Raises ``DocumentMissing`` for a name that the store does not hold."""
        raise NotImplementedError

    @overload
    def get(self, key: str) -> Document | None: ...
    @overload
    def get(self, key: str, default: T) -> Document | T: ...
    def get(self, key: str, default: T | None = None) -> Document | T | None:
        """As a mapping's, without the names that are near a missing one, which take a look at all."""
        if key in self:
            with suppress(KeyError):  # It was removed just now.
                return self[key]
        return default

    def __iter__(self) -> Iterator[str]:
        """The documents' names, in order."""
        raise NotImplementedError

    def committed(self, name: str) -> float:
        """When the document was last committed, in seconds since 1970."""
        raise NotImplementedError

    def using(self, *names: str) -> AbstractContextManager[None]:
        """Notes a use of the documents, and keeps them from being removed to make room within the context."""
        return nullcontext()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def check_name(self, name: str) -> None:
        """Raises ``StoreError`` for what cannot be a document's name."""
        manifest_file(name)

    def readable(self) -> list[Document]:
        """All documents but those whose manifests are broken."""
        documents = []
        for name in self:
            try:
                documents.append(self[name])
            except StoreError:
                continue
        return documents

    def _missing(self, name: str) -> DocumentMissing:
        names = list(self)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "kvtool ls shows what is there"
        if not names:
            hint = "the store is empty: run kvtool prefill first"
        return DocumentMissing(name, f"is not in the store {self}", hint)


class DocumentMissing(StoreError, KeyError):
    """A name, the ``subject``, that the store does not hold."""
