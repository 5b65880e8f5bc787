"""The catalog of a remote store: its manifests, as they are now or were ``FRESH`` seconds ago, with few requests.

A server asks for the same document several times in one request, and for all of them to find the beginnings of prompts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from kvtool.errors import StoreError
from kvtool.store.backends.backend import Backend, Listed, NotThere, Unreachable
from kvtool.store.backends.open import open_backend
from kvtool.store.catalog.catalog import Catalog, DocumentMissing
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.manifest import Document
from kvtool.store.trust.policy import TrustPolicy
from kvtool.system.cache_dir import cache_dir

FRESH = 5.0
"""Seconds for which an answer is taken to hold."""

_log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    document: Document
    version: str
    asked: float


class RemoteCatalog(Catalog):
    """The documents at the address ``root``, or those that ``backend`` shows. Safe to use from any thread.

    Each manifest is kept in ``cache``, which answers while nothing else does.
    """

    def __init__(self, root: str | Path, backend: Backend | None = None) -> None:
        self.backend = backend or open_backend(root)
        self.cache = LocalCatalog(cache_dir() / "servers" / self.backend.key, is_cache=True)
        # What the store requires is known once it has answered.
        self.trust = TrustPolicy.of()
        self._seen: dict[str, _Seen] = {}
        self._listed: Mapping[str, Listed] = {}
        self._listed_at = -math.inf
        self._listing = threading.Lock()

    def __str__(self) -> str:
        return self.backend.url

    def __getitem__(self, name: str) -> Document:
        """The document of that name. Raises ``Unreachable`` if nothing answers and no manifest of it was kept."""
        self.check_name(name)
        if known := self._known_document(name):
            return known
        # From before the manifest is asked for: one that changes just now is asked for once more.
        version = self._listed_version(name)
        try:
            data = self.backend.manifest(name)
        except NotThere:
            self._seen.pop(name, None)
            with suppress(StoreError):
                self.cache.remove(name)
            raise self._missing(name) from None
        except Unreachable as error:
            if name not in self.cache:
                raise
            _log.warning("%s; going on with what was kept of it", error)
            document, version = self.cache[name], ""
        else:
            url = self.backend.url
            document = Document.from_bytes(data, f"{url}: {name}")
            if document.name != name:
                raise StoreError(
                    url, f"sent the manifest of {document.name!r} for {name!r}", "tell who runs it"
                )
            self._keep(TrustPolicy.of(self.backend.marker).checked(document))
        self.trust.checked(document)
        self._seen[name] = _Seen(document, version, time.monotonic())
        return document

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._documents()))

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self.check_name(name)
        except StoreError:
            return False
        try:
            self[name]
        except DocumentMissing:
            return False
        return True

    def committed(self, name: str) -> float:
        documents = self._documents()
        if name not in documents:
            raise self._missing(name)
        return documents[name].committed

    @property
    def encrypted_with(self) -> str | None:
        return self.backend.marker.encrypted_with

    def using(self, *names: str) -> AbstractContextManager[None]:
        for name in names:
            # Its manifest must be in the cache, or there is nothing to hold.
            with suppress(StoreError):
                _ = self[name]
        return self.cache.using(*names)

    def _documents(self) -> Mapping[str, Listed]:
        """All documents, by name."""
        with self._listing:
            if not self._is_list_fresh:
                self._listed, self._listed_at = self.backend.documents(), time.monotonic()
                for name in [*self._seen]:
                    if name not in self._listed:
                        self._seen.pop(name, None)
            return self._listed

    def _known_document(self, name: str) -> Document | None:
        """The document, if the backend need not be asked for it."""
        if (seen := self._seen.get(name)) is None:
            return None
        if name not in self.cache:
            # It was removed to make room. Artifacts that come again need it, or nobody knows whose they are.
            self._keep(seen.document)
        is_fresh = time.monotonic() - seen.asked < FRESH
        is_unchanged = seen.version and seen.version == self._listed_version(name)
        return seen.document if is_fresh or is_unchanged else None

    def _listed_version(self, name: str) -> str:
        listed = self._listed
        return listed[name].version if self._is_list_fresh and name in listed else ""

    @property
    def _is_list_fresh(self) -> bool:
        return time.monotonic() - self._listed_at < FRESH

    def _keep(self, document: Document) -> None:
        try:
            is_kept = self.cache[document.name] == document
        except StoreError:
            is_kept = False
        if not is_kept:
            with self.cache.writing():
                self.cache.accept(document)
