"""Decoded caches in memory: bounded in bytes, pinned while in use, the longest unused given up first."""

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
    """More than fits at all."""


class Busy(KvtoolError):
    """Nothing was given back in time."""


@dataclass
class _Held:
    nbytes: int
    pins: int = 0
    cache: Future[DocumentCache] = field(default_factory=Future)


class Memory:
    """Holds at most ``limit`` bytes. Safe to use from any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._changed = threading.Condition()
        # One at a time waits for room: of several that had a part of what they need each, none might ever get the rest.
        self._turn = threading.Lock()

    def has(self, key: Hashable) -> bool:
        return key in self._held

    @contextmanager
    def holding(
        self, key: Hashable, nbytes: int, load: Callable[[], DocumentCache], *, own: int, timeout: float
    ) -> Iterator[DocumentCache]:
        """The cache of ``key``, which takes ``nbytes``, loaded unless it is there, and room for ``own`` bytes beside it.

        It is not given up within the context. Who comes while another loads it waits for that. Raises ``TooLarge`` for more
        than the limit, ``Busy`` if there was no room within ``timeout`` seconds, and what ``load`` raises.
        """
        held, is_mine = self._pin(key, nbytes, own, time.monotonic() + timeout)
        try:
            if is_mine:
                try:
                    held.cache.set_result(load())
                except BaseException as error:
                    held.cache.set_exception(error)
            yield held.cache.result()
        finally:
            with self._changed:
                self.used -= own
                held.pins -= 1
                # What could not be loaded is tried again by the next who asks.
                if held.cache.done() and held.cache.exception() and self._held.get(key) is held:
                    self._drop(key)
                self._changed.notify_all()

    @contextmanager
    def reserved(self, nbytes: int, *, timeout: float) -> Iterator[None]:
        """Room for what one request takes alone. Raises as ``holding`` does."""
        until = time.monotonic() + timeout
        with self._its_turn(until), self._changed:
            self._make_room(nbytes, until)
            self.used += nbytes
        try:
            yield
        finally:
            with self._changed:
                self.used -= nbytes
                self._changed.notify_all()

    def _pin(self, key: Hashable, nbytes: int, own: int, until: float) -> tuple[_Held, bool]:
        with self._its_turn(until), self._changed:
            there = self._held.get(key)
            if there:
                there.pins += 1
            try:
                self._make_room(own if there else own + nbytes, until)
            except KvtoolError:
                if there:
                    there.pins -= 1
                raise
            self.used += own
            if there:
                self._held.move_to_end(key)
                return there, False
            held = self._held[key] = _Held(nbytes, pins=1)
            self.used += nbytes
            return held, True

    @contextmanager
    def _its_turn(self, until: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=max(0.0, until - time.monotonic())):
            raise _busy()
        try:
            yield
        finally:
            self._turn.release()

    def _make_room(self, nbytes: int, until: float) -> None:
        if nbytes > self.limit:
            raise TooLarge(
                "its cache",
                f"takes {nbytes:,} bytes of memory, and all caches together may take {self.limit:,}",
                "start the server with a larger --memory, or name fewer or shorter documents",
            )
        while self.used + nbytes > self.limit:
            unused = next((key for key, held in self._held.items() if not held.pins), None)
            if unused is not None:
                self._drop(unused)
            elif (left := until - time.monotonic()) <= 0 or not self._changed.wait(left):
                raise _busy()

    def _drop(self, key: Hashable) -> None:
        self.used -= self._held.pop(key).nbytes


def _busy() -> Busy:
    return Busy(None, "all memory for caches is in use", "try again later")
