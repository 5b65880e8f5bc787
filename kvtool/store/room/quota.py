"""A quota: the bytes that a store may take while a server writes to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from kvtool.errors import KvtoolError, StoreError
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.room.make_room import make_room, stored_bytes
from kvtool.store.room.rules import Rules

STRAY_SECONDS = 3600.0
"""How long an artifact may wait for the manifest that names it: one that is being sent has none yet."""

COUNT_SECONDS = 10.0
"""How long a count of the store's bytes holds, and between two looks at it."""

WAIT_SECONDS = 5.0
"""That somebody who brings something waits for others who write."""

_log = logging.getLogger(__name__)


class QuotaReached(StoreError):
    """There is no room within the quota."""


class Quota:
    """At most ``max_bytes`` of artifacts and calibrations in ``catalog``: what was not used for the longest goes.

    What is pinned or in use stays, so that a store may be larger for a while: it then takes nothing new. Safe to use from any
    thread.
    """

    def __init__(self, catalog: LocalCatalog, max_bytes: int) -> None:
        self.catalog, self.max_bytes = catalog, max_bytes
        # A cache's artifacts are named by manifests before they come.
        self._stray_seconds = 0.0 if catalog.is_cache else STRAY_SECONDS
        self._lock = threading.Lock()
        self._nbytes, self._counted, self._coming = 0, -COUNT_SECONDS, 0

    @contextmanager
    def admitted(self, nbytes: int) -> Iterator[None]:
        """Makes room for ``nbytes`` that come within the context. Raises ``QuotaReached`` if there is none to be had."""
        with self._lock:
            if nbytes:
                self._admit(nbytes)
            self._coming += nbytes
        try:
            yield
        finally:
            with self._lock:
                self._coming -= nbytes
                # As if all of it had come, until it is counted.
                self._nbytes += nbytes

    def keep(self) -> None:
        """Removes what is too much by now. A store that cannot be read is left alone."""
        try:
            with self._lock:
                self._count()
                if self._nbytes > self.max_bytes:
                    self._make_room(0)
        except OSError as error:
            _log.warning("%s: no room was made: %s", self.catalog, error)

    def _admit(self, nbytes: int) -> None:
        self._count()
        ends = time.monotonic() + WAIT_SECONDS
        while self._nbytes + self._coming + nbytes > self.max_bytes:
            if nbytes <= self.max_bytes and not self._make_room(nbytes) and time.monotonic() < ends:
                # Others are writing. None begins to while this waits for them.
                time.sleep(0.05)
                continue
            if self._nbytes + self._coming + nbytes <= self.max_bytes:
                break
            why = "others are writing" if time.monotonic() >= ends else "the rest is pinned or in use"
            reason = f"{nbytes:,} bytes more do not fit into {self.max_bytes:,}: {why}"
            raise QuotaReached(str(self.catalog), reason, "remove or unpin documents, or raise the quota")

    def _count(self) -> None:
        if time.monotonic() - self._counted >= COUNT_SECONDS:
            self._nbytes, self._counted = stored_bytes(self.catalog), time.monotonic()

    def _make_room(self, nbytes: int) -> bool:
        """Leaves room for ``nbytes``, and some more, so that not each that comes has to remove something.

        Returns whether nobody else was writing.
        """
        spare = min(self.max_bytes // 20, self.max_bytes - nbytes)
        try:
            self._nbytes = stored_bytes(self.catalog)
            if self._nbytes + self._coming + nbytes <= self.max_bytes:
                return True
            room = make_room(
                self.catalog,
                Rules(max_bytes=self.max_bytes),
                need_bytes=nbytes + self._coming + spare,
                stray_seconds=self._stray_seconds,
                wait=False,
            )
        except (KvtoolError, OSError) as error:
            # A manifest that cannot be read, say: what it needs is not known, so nothing is removed.
            _log.warning("%s: no room was made: %s", self.catalog, error)
            return True
        if room is None:
            return False
        self._nbytes, self._counted = room.nbytes, time.monotonic()
        if room.documents:
            _log.info("%s: removed %s to make room", self.catalog, ", ".join(room.documents))
        return True


class Keeper:
    """A thread that keeps ``quotas``, from ``start`` to ``stop``."""

    def __init__(self, quotas: Collection[Quota]) -> None:
        self.quotas = quotas
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="room", daemon=True)

    def start(self) -> None:
        if self.quotas:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for quota in self.quotas:
                quota.keep()
            self._stopping.wait(COUNT_SECONDS)
