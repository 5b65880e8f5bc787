"""Decoded caches in memory: bounded in bytes, pinned while in use, the least recently used evicted first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvtool.engines.cache import DocumentCache
from kvtool.errors import KvtoolError


class TooLarge(KvtoolError):
    """A cache is larger than all memory for caches."""


class Busy(KvtoolError):
    """All memory for caches stayed in use for as long as a request may wait."""


@dataclass
class _Entry:
    nbytes: int
    pins: int = 0
    cache: Future[DocumentCache] = field(default_factory=Future)


class CacheMemory:
    """Memory of at most ``limit`` bytes for caches. Safe to use from any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._changed = threading.Condition()
        # One request at a time waits for room: of several that had a part of what they need each, none might ever get the rest.
        self._queue = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, key: Hashable) -> bool:
        return key in self._entries

    @contextmanager
    def holding(
        self, key: Hashable, nbytes: int, load: Callable[[], DocumentCache], *, private: int, timeout: float
    ) -> Iterator[DocumentCache]:
        """Holds the cache of ``key``, which takes ``nbytes``, and room for ``private`` bytes beside it.

        The cache is loaded unless it is in memory, and is not evicted within the context. Requests that come while another one
        loads it wait for that. Raises ``TooLarge`` for more than the limit, ``Busy`` if there was no room within ``timeout``
        seconds, and what ``load`` raises.
        """
        entry, is_new = self._pin(key, nbytes, private, time.monotonic() + timeout)
        try:
            if is_new:
                try:
                    entry.cache.set_result(load())
                except BaseException as error:
                    entry.cache.set_exception(error)
            yield entry.cache.result()
        finally:
            with self._changed:
                self.used -= private
                entry.pins -= 1
                # A cache that could not be loaded is tried again by the next request.
                if entry.cache.done() and entry.cache.exception() and self._entries.get(key) is entry:
                    self._drop(key)
                self._changed.notify_all()

    @contextmanager
    def reserved(self, nbytes: int, *, timeout: float) -> Iterator[None]:
        """Holds room for ``nbytes`` of one request. Raises as ``holding`` does."""
        until = time.monotonic() + timeout
        with self._queued(until), self._changed:
            self._make_room(nbytes, until)
            self.used += nbytes
        try:
            yield
        finally:
            with self._changed:
                self.used -= nbytes
                self._changed.notify_all()

    def _pin(self, key: Hashable, nbytes: int, private: int, until: float) -> tuple[_Entry, bool]:
        """The entry of ``key``, pinned, and whether it is new and must be loaded."""
        with self._queued(until), self._changed:
            entry = self._entries.get(key)
            if entry is None:
                self._make_room(private + nbytes, until)
                entry = self._entries[key] = _Entry(nbytes, pins=1)
                self.used += private + nbytes
                return entry, True
            # Before any wait: meanwhile it may turn out that the cache cannot be loaded, and then its entry is gone.
            self._entries.move_to_end(key)
            entry.pins += 1
            try:
                self._make_room(private, until)
            except KvtoolError:
                entry.pins -= 1
                raise
            self.used += private
            return entry, False

    @contextmanager
    def _queued(self, until: float) -> Iterator[None]:
        if not self._queue.acquire(timeout=max(0.0, until - time.monotonic())):
            raise _busy()
        try:
            yield
        finally:
            self._queue.release()

    def _make_room(self, nbytes: int, until: float) -> None:
        if nbytes > self.limit:
            raise TooLarge(
                "its cache",
                f"takes {nbytes:,} bytes of memory, and all caches together may take {self.limit:,}",
                "start the server with a larger --memory, or name fewer or shorter documents",
            )
        while self.used + nbytes > self.limit:
            unused = next((key for key, entry in self._entries.items() if not entry.pins), None)
            if unused is not None:
                self._drop(unused)
            elif (seconds := until - time.monotonic()) <= 0 or not self._changed.wait(seconds):
                raise _busy()

    def _drop(self, key: Hashable) -> None:
        self.used -= self._entries.pop(key).nbytes


def _busy() -> Busy:
    return Busy(None, "all memory for caches is in use", "try again later")
