"""The documents of a server, a bucket or another place, read through a local store that is their cache.

An artifact is fetched when it is first read, checked to the byte, and not asked for again. Manifests may change, and
``catalog/remote`` follows them. Each place has a cache of its own in the cache directory.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.artifact.read import Artifact
from kvtool.digest import is_digest
from kvtool.store.backends.backend import Backend, NotThere
from kvtool.store.backends.open import BACKENDS
from kvtool.store.base import Store
from kvtool.store.calibrations import Calibrations
from kvtool.store.catalog.remote import RemoteCatalog
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Variant
from kvtool.system.throughput import LASTS, Rate

if TYPE_CHECKING:
    from kvtool.codecs import Calibration


class RemoteStore(RemoteCatalog, Store, schemes=BACKENDS):
    """The store at ``root``, an address of one of ``BACKENDS``, or what ``backend`` shows. Read only.

    Safe to use from any thread.
    """

    def __init__(self, root: str | Path, backend: Backend | None = None) -> None:
        super().__init__(root, backend)
        self.cache: LocalStore = LocalStore(self.cache.root, is_cache=True)
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._link = Rate(lasts=LASTS)

    @property
    def calibrations(self) -> Calibrations:
        return self.cache.calibrations

    def holds(self, variant: Variant) -> bool:
        """True: only fetching an artifact shows whether it is missing."""
        return True

    def open_artifact(self, variant: Variant) -> Artifact:
        # Of several who want it, one fetches it.
        with self._fetching[variant.artifact]:
            if not self.cache.holds(variant):
                self.fetch(variant, self.cache)
        return self.cache.open_artifact(variant)

    def locate_artifact(self, digest: str) -> Path:
        if is_digest(digest) and not self.cache.artifact_path(digest).is_file():
            named = (variant for document in self.values() for variant in document.artifacts)
            if variant := next((variant for variant in named if variant.artifact == digest), None):
                self.open_artifact(variant)
        return self.cache.locate_artifact(digest)

    def locate_calibration(self, digest: str) -> Path:
        if is_digest(digest) and digest not in self.calibrations:
            with self.cache.writing():
                self.calibrations.receive(digest, self.backend.calibration(digest))
        return self.cache.locate_calibration(digest)

    def discard(self, variant: Variant) -> None:
        self.cache.discard(variant)

    def fetch_seconds(self, variant: Variant) -> float:
        """Seconds that fetching the artifact is expected to take, 0 if it was fetched or nothing was yet."""
        return 0.0 if self.cache.holds(variant) else self._link.seconds(variant.nbytes)

    def fetch(
        self, variant: Variant, into: LocalStore, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        """Copies an artifact into a local store, with the calibrations that it names, and checks every byte.

        ``on_bytes`` gets the number of bytes of each piece that has come.
        """

        def chunks() -> Iterator[bytes]:
            for chunk in self.backend.artifact(variant.artifact, variant.nbytes):
                yield chunk
                on_bytes(len(chunk))

        started = time.monotonic()
        with into.writing():
            calibrations = FetchedCalibrations(into.calibrations, self.backend)
            nbytes = into.receive(variant.artifact, chunks(), calibrations)
        self._link.took(nbytes, time.monotonic() - started)


class FetchedCalibrations(Mapping[str, "Calibration"]):
    """A store's calibrations; missing ones are copied from a backend when they are asked for."""

    def __init__(self, into: Calibrations, backend: Backend) -> None:
        self.into, self.backend = into, backend

    def __getitem__(self, digest: str) -> Calibration:
        if is_digest(digest) and digest not in self.into:
            try:
                self.into.receive(digest, self.backend.calibration(digest))
            except NotThere:
                raise KeyError(digest) from None
        return self.into[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self.into)

    def __len__(self) -> int:
        return len(self.into)
