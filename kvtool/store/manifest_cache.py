"""A backend's manifests, as they are now or were ``FRESH`` seconds ago, with as few requests as can be.

A server asks for the same document several times in one request, and for all of them to find the beginnings of prompts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from kvtool.errors import StoreError
from kvtool.store.backends.backend import Backend, Listed, NotThere, Unreachable
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document

FRESH = 5.0
"""Seconds for which an answer is taken to hold."""

_log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    document: Document
    version: str
    asked: float


class ManifestCache:
    """Manifests of ``backend``. Each is kept in ``cache``, which answers while nothing else does.

    Safe to use from any thread.
    """

    def __init__(self, backend: Backend, cache: LocalStore) -> None:
        self.backend, self.cache = backend, cache
        self._seen: dict[str, _Seen] = {}
        self._listed: Mapping[str, Listed] = {}
        self._listed_at = -math.inf
        self._listing = threading.Lock()

    def listed(self) -> Mapping[str, Listed]:
        """All documents, by name."""
        with self._listing:
            if not self._is_list_fresh:
                self._listed, self._listed_at = self.backend.documents(), time.monotonic()
                for name in [*self._seen]:
                    if name not in self._listed:
                        self._seen.pop(name, None)
            return self._listed

    def document(self, name: str) -> Document:
        """The document of that name. Raises ``NotThere`` if there is none, ``Unreachable`` if none was kept of it either."""
        if known := self._known(name):
            return known
        # From before the manifest is asked for: one that changes just now is asked for once more.
        version = self._listed_version(name)
        try:
            data = self.backend.manifest(name)
        except NotThere:
            self._seen.pop(name, None)
            with suppress(StoreError):
                self.cache.remove(name)
            raise
        except Unreachable as error:
            if name not in self.cache:
                raise
            _log.warning("%s; going on with what was kept of it", error)
            document, version = self.cache[name], ""
        else:
            document = Document.from_bytes(data, f"{self.backend.url}: {name}")
            if document.name != name:
                raise StoreError(
                    self.backend.url,
                    f"sent the manifest of {document.name!r} for {name!r}",
                    "tell who runs it",
                )
            self._keep(document)
        self._seen[name] = _Seen(document, version, time.monotonic())
        return document

    def _known(self, name: str) -> Document | None:
        """The document, if the backend need not be asked for it."""
        if (seen := self._seen.get(name)) is None:
            return None
        if time.monotonic() - seen.asked < FRESH or (
            seen.version and seen.version == self._listed_version(name)
        ):
            return seen.document
        return None

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
                self.cache.commit(document)
