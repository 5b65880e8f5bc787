"""A server's documents, or a bucket's, as a store that is read only.

What is read is kept in the cache directory, in a store of its own for each source. An artifact is fetched when it is
first read, checked to the byte, and not asked for again. Manifests may change, and are followed (``manifest_cache``).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kvtool.artifact.read import Artifact
from kvtool.digest import is_digest
from kvtool.errors import StoreError
from kvtool.store.backends.backend import NotThere, Source
from kvtool.store.backends.http import Server
from kvtool.store.backends.object_store import SCHEMES, Bucket
from kvtool.store.calibrations import Calibrations
from kvtool.store.layout import address
from kvtool.store.local import DocumentMissing, Store
from kvtool.store.manifest import Document, Variant
from kvtool.store.manifest_cache import Following
from kvtool.system.cache_dir import cache_dir
from kvtool.system.throughput import LASTS, Rate

if TYPE_CHECKING:
    from kvtool.codecs import Calibration


class RemoteStore(Store):
    """What ``Store("http://host:port")`` and ``Store("s3://bucket/prefix")`` are.

    Whatever would change it raises ``StoreError``. Safe to use from any thread.
    """

    is_writable = False

    def __init__(self, root: str | Path) -> None:
        self.source = _source(address(root))
        super().__init__(cache_dir() / "servers" / self.source.key)
        self._kept = Store(self.root)
        self._following = Following(self.source, self._kept)
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._link = Rate(lasts=LASTS)

    def __str__(self) -> str:
        return self.source.url

    def __getitem__(self, name: str) -> Document:
        self.check_name(name)
        try:
            return self._following.document(name)
        except NotThere:
            raise self._missing(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._following.listed()))

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
        listed = self._following.listed()
        if name not in listed:
            raise self._missing(name)
        return listed[name].committed

    def holds(self, variant: Variant) -> bool:
        """What a manifest names is there as far as is known: fetching it shows."""
        return True

    def open_artifact(self, variant: Variant) -> Artifact:
        # Of several who want it, one fetches it.
        with self._fetching[variant.artifact]:
            if not self._kept.holds(variant):
                self.fetch(variant, self._kept)
        return self._kept.open_artifact(variant)

    def fetch_seconds(self, variant: Variant) -> float:
        return 0.0 if self._kept.holds(variant) else self._link.seconds(variant.nbytes)

    @cached_property
    def heads(self) -> Store:
        from kvtool.store.headers import Heads

        return Heads(self)

    def fetch(self, variant: Variant, into: Store, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Copies an artifact into another store, with the calibrations that it names, and checks every byte.

        ``on_bytes`` is told how many more have come.
        """

        def chunks() -> Iterator[bytes]:
            for chunk in self.source.artifact(variant.artifact, variant.nbytes):
                yield chunk
                on_bytes(len(chunk))

        started = time.monotonic()
        with into.writing():
            nbytes = into.receive(variant.artifact, chunks(), Fetched(into.calibrations, self.source))
        self._link.took(nbytes, time.monotonic() - started)

    def bring(self, digest: str) -> None:
        if self._kept.artifact_path(digest).is_file():
            return
        for document in self.values():
            for variant in document.artifacts:
                if variant.artifact == digest:
                    self.open_artifact(variant)
                    return

    def bring_calibration(self, digest: str) -> None:
        if digest not in self.calibrations:
            with suppress(KeyError), self._kept.writing():
                _ = Fetched(self.calibrations, self.source)[digest]

    def _artifact_files(self) -> Iterator[Path]:
        # Only what manifests name is known.
        return iter(())

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise StoreError(self, "is read only", "kvtool pull copies its documents into a store of your own")

    writing = changing = put = receive = put_calibration = commit = remove = collect = _refuse


def _source(url: str) -> Source:
    return Bucket(url) if url.partition("://")[0] in SCHEMES else Server(url)


class Fetched(Mapping[str, "Calibration"]):
    """A store's calibrations; those that it has not are copied from a source when they are asked for."""

    def __init__(self, into: Calibrations, source: Source) -> None:
        self.into, self.source = into, source

    def __getitem__(self, digest: str) -> Calibration:
        if is_digest(digest) and digest not in self.into:
            try:
                self.into.receive(digest, self.source.calibration(digest))
            except NotThere:
                raise KeyError(digest) from None
        return self.into[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self.into)

    def __len__(self) -> int:
        return len(self.into)
