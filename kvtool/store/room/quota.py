"""A quota: the bytes that a store may take while a server writes to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection

from kvtool.errors import KvtoolError, StoreError
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.room.make_room import make_room, stored_bytes
from kvtool.store.room.rules import Rules

STRAY_SECONDS = 3600.0
"""How long an artifact may wait for the manifest that names it: one that is being sent has none yet."""

COUNT_SECONDS = 10.0
"""How long a count of the store's bytes holds, and between two looks at it."""

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
        self._lock = threading.Lock()
        self._nbytes, self._counted = 0, -COUNT_SECONDS

    def admit(self, nbytes: int) -> None:
        """Makes room for ``nbytes`` more. Raises ``QuotaReached`` if there is none to be had.

        While others write, nothing is removed: room is made when they have ended.
        """
        with self._lock:
            self._make_room(nbytes)
            if self._nbytes + nbytes > self.max_bytes:
                reason = (
                    f"{nbytes:,} bytes more do not fit into {self.max_bytes:,}: the rest is pinned or in use"
                )
                raise QuotaReached(str(self.catalog), reason, "remove or unpin documents, or raise the quota")
            self._nbytes += nbytes

    def keep(self) -> None:
        """Removes what is too much by now. A store that cannot be read is left alone."""
        try:
            with self._lock:
                self._make_room(0)
        except KvtoolError as error:
            _log.warning("no room was made: %s", error)

    def _make_room(self, need_bytes: int) -> None:
        if time.monotonic() - self._counted >= COUNT_SECONDS:
            self._nbytes, self._counted = stored_bytes(self.catalog), time.monotonic()
        if self._nbytes + need_bytes <= self.max_bytes:
            return
        rules = Rules(max_bytes=self.max_bytes)
        room = make_room(self.catalog, rules, need_bytes=need_bytes, stray_seconds=STRAY_SECONDS, wait=False)
        if room is None:
            # Others are writing. Nothing that fits into the quota by itself is refused because of that.
            self._nbytes = min(self._nbytes, self.max_bytes - need_bytes)
            return
        self._nbytes, self._counted = room.nbytes, time.monotonic()
        if room.documents:
            _log.info("%s: removed %s to make room", self.catalog, ", ".join(room.documents))


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
