"""A server's documents as a store that is read only.

What is read is kept in the cache directory, in a store of its own for each server and token. An artifact is fetched
when it is first read, checked to the byte, and not asked for again. Manifests, which may change, are asked for each
time; while the server cannot be reached, those that were kept stand in.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .artifact import Artifact
from .calibrations import Calibrations
from .client import NotThere, Server, Unreachable
from .digest import is_digest
from .errors import StoreError
from .manifest import Document, Variant
from .places import cache_dir
from .rate import Rate
from .store import DocumentMissing, Store

if TYPE_CHECKING:
    from .codecs import Calibration

log = logging.getLogger(__name__)

BELIEVED = 300.0
"""Seconds for which the speed of the link to a server is taken to be what it was."""


class RemoteStore(Store):
    """What ``Store("http://host:port")`` is. Whatever would change it raises ``StoreError``."""

    def __init__(self, root: str | Path) -> None:
        # A Path writes http://host as http:/host.
        self.server = Server(re.sub(r"^(https?):/(?!/)", r"\1://", str(root)))
        super().__init__(cache_dir() / "servers" / self.server.key)
        self._kept = Store(self.root)
        self._link = Rate(lasts=BELIEVED)

    def __str__(self) -> str:
        return self.server.url

    def __getitem__(self, name: str) -> Document:
        self.check_name(name)
        try:
            data = self.server.manifest(name)
        except NotThere:
            with suppress(StoreError):
                self._kept.remove(name)
            raise DocumentMissing(self._missing(name)) from None
        except Unreachable as error:
            if name not in self._kept:
                raise
            log.warning("%s; going on with what was kept of it", error)
            return self._kept[name]
        document = Document.from_bytes(data, f"{self}: {name}")
        if document.name != name:
            raise StoreError(f"{self}: sent the manifest of {document.name!r} for {name!r}; tell who runs it")
        self._keep(document)
        return document

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.server.names()))

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

    def holds(self, variant: Variant) -> bool:
        """What a manifest names is there as far as is known: fetching it shows."""
        return True

    def open_artifact(self, variant: Variant) -> Artifact:
        if not self._kept.holds(variant):
            self.fetch(variant, self._kept)
        return self._kept.open_artifact(variant)

    def fetch_seconds(self, variant: Variant) -> float:
        return 0.0 if self._kept.holds(variant) else self._link.seconds(variant.nbytes)

    @cached_property
    def heads(self) -> Store:
        from .heads import Heads

        return Heads(self)

    def fetch(self, variant: Variant, into: Store, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Copies an artifact into another store, with the calibrations that it names, and checks every byte.

        ``on_bytes`` is told how many more have come.
        """

        def chunks() -> Iterator[bytes]:
            for chunk in self.server.artifact(variant.artifact, variant.nbytes):
                yield chunk
                on_bytes(len(chunk))

        started = time.monotonic()
        with into.writing():
            into.receive(variant.artifact, chunks(), Fetched(into.calibrations, self.server))
        self._link.took(variant.nbytes, time.monotonic() - started)

    def _keep(self, document: Document) -> None:
        try:
            is_kept = self._kept[document.name] == document
        except StoreError:
            is_kept = False
        if not is_kept:
            with self._kept.writing():
                self._kept.commit(document)

    def _artifact_files(self) -> Iterator[Path]:
        # Only what manifests name is known of a server.
        return iter(())

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise StoreError(f"{self}: is read only; kvtool pull copies its documents into a store of your own")

    writing = changing = put = receive = put_calibration = commit = remove = collect = _refuse


class Fetched(Mapping[str, "Calibration"]):
    """A store's calibrations; those that it has not are copied from a server when they are asked for."""

    def __init__(self, into: Calibrations, server: Server) -> None:
        self.into, self.server = into, server

    def __getitem__(self, digest: str) -> Calibration:
        if is_digest(digest) and digest not in self.into:
            try:
                self.into.receive(digest, self.server.calibration(digest))
            except NotThere:
                raise KeyError(digest) from None
        return self.into[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self.into)

    def __len__(self) -> int:
        return len(self.into)
