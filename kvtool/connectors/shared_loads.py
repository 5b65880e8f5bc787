"""Loads that several callers share, and whose results stay in bounded memory: an engine asks for a segment block by block."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvtool.connectors.avoided import Avoided
from kvtool.connectors.daemon_pool import DaemonPool
from kvtool.errors import described

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What loads may take: ``nbytes`` for all results, ``seconds`` for one load, ``threads`` for all of them."""

    nbytes: int
    seconds: float
    threads: int = 2


@dataclass(frozen=True)
class _Loading(Generic[V]):
    future: Future[V | None]
    began: float
    until: float


class SharedLoads(Generic[K, V]):
    """The results of ``load`` by key, those used last.

    ``size`` says how many bytes the result of a key takes, before it is loaded. Results that are kept and those that are being
    loaded stay within the bound together; one that a caller still reads when another takes its place is not counted.

    Whoever asks for what is being loaded waits for that load. Any error of it, or a load that takes longer than its bound, is
    one line in the log, and None for all who asked.
    """

    def __init__(self, load: Callable[[K], V], size: Callable[[K], int], bounds: Bounds) -> None:
        self.load, self.size, self.bounds = load, size, bounds
        self._pool = DaemonPool(bounds.threads, "loads")
        self._lock = threading.Lock()
        self._has_room = threading.Condition(self._lock)
        self._results: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._kept = self._reserved = 0
        self._loading: dict[K, _Loading[V]] = {}
        self._avoided: Avoided[K] = Avoided()
        self._is_closed = False

    def get(self, key: K, until: float | None = None) -> V | None:
        """The result for ``key``, once it is loaded. Raises nothing.

        Waits no longer than a load may take, nor past the moment ``until`` of ``time.monotonic``.
        """
        latest = time.monotonic() + self.bounds.seconds
        until = latest if until is None else min(until, latest)
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key][0]
            if self._is_closed or key in self._avoided:
                return None
            try:
                loading = self._loading.get(key) or self._started(key, until)
            except RuntimeError:
                return None  # The process ends.
        try:
            return loading.future.result(max(0.0, min(until, loading.until) - time.monotonic()))
        except FutureTimeout:
            if until >= loading.until:
                self._give_up(key, loading)
            return None
        except CancelledError:
            return None

    def is_avoided(self, key: K) -> bool:
        """Whether a load failed, or took too long, a moment ago."""
        with self._lock:
            return key in self._avoided

    def clear(self) -> None:
        """Frees all results."""
        with self._lock:
            self._results.clear()
            self._kept = 0

    def close(self) -> None:
        """Frees all results, and starts no more loads; does not wait for those that run."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all results that are kept, and of those that are being loaded."""
        return self._kept + self._reserved

    def _started(self, key: K, until: float) -> _Loading[V]:
        self._loading[key] = _Loading(self._pool.submit(self._run, key, until), time.monotonic(), until)
        return self._loading[key]

    def _run(self, key: K, until: float) -> V | None:
        reserved = 0
        try:
            reserved = self._reserve(self.size(key), until)
            result = self.load(key)
        except Exception as error:
            # Whatever it is, the engine goes on without.
            self._avoid(key, described(error))
            with self._has_room:
                self._end(key, reserved)
            return None
        with self._has_room:
            self._end(key, reserved)
            self._avoided.discard(key)
            if not self._is_closed:
                self._results[key] = result, reserved
                self._kept += reserved
        return result

    def _reserve(self, nbytes: int, until: float) -> int:
        """Makes room for ``nbytes``, by freeing what was used longest ago. Waits for other loads if they take all the rest."""
        with self._has_room:
            seconds = max(0.0, until - time.monotonic())
            if not self._has_room.wait_for(lambda: self._reserved + nbytes <= self.bounds.nbytes, seconds):
                raise TimeoutError("other loads take all the memory")
            self._reserved += nbytes
            while self.nbytes > self.bounds.nbytes:
                _, (_, freed) = self._results.popitem(last=False)
                self._kept -= freed
        return nbytes

    def _end(self, key: K, reserved: int) -> None:
        self._loading.pop(key, None)
        self._reserved -= reserved
        self._has_room.notify_all()

    def _give_up(self, key: K, loading: _Loading[V]) -> None:
        self._avoid(key, f"it was not loaded within {loading.until - loading.began:.2g} seconds")
        self._pool.give_up(loading.future)
        with self._lock:
            # One that had not begun never will; one that runs may still come, for whoever asks later.
            if loading.future.cancelled() and self._loading.get(key) is loading:
                del self._loading[key]

    def _avoid(self, key: K, reason: str) -> None:
        with self._lock:
            is_known = key in self._avoided
            self._avoided.add(key)
        if not is_known:
            _log.warning("%s is not loaded: %s", key, reason)
