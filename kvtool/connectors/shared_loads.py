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

from kvtool.errors import KvtoolError
from kvtool.kernels.threads import background_pool

AVOIDED_SECONDS = 60.0
"""For which what could not be loaded is not tried again."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What loads may take: ``nbytes`` for all results that are kept, ``seconds`` for one load, ``threads`` for all of them."""

    nbytes: int
    seconds: float
    threads: int = 2


class SharedLoads(Generic[K, V]):
    """The results of ``load`` by key, those used last: ``size`` says how many bytes one takes.

    Whoever asks for what is being loaded waits for that load. Any error of it, or a load that takes longer than its bound, is
    one line in the log, and None for all who asked.
    """

    def __init__(self, load: Callable[[K], V], size: Callable[[V], int], bounds: Bounds) -> None:
        self.load, self.size, self.bounds = load, size, bounds
        self._pool = background_pool(bounds.threads, "loads")
        self._lock = threading.Lock()
        self._results: OrderedDict[K, V] = OrderedDict()
        self._nbytes = 0
        self._loading: dict[K, tuple[Future[V | None], float]] = {}
        self._avoided: dict[K, float] = {}
        self._is_closed = False

    def get(self, key: K) -> V | None:
        """The result for ``key``, once it is loaded. Waits no longer than a load may take, and raises nothing."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
            if self._is_closed or self._is_avoided(key):
                return None
            if key not in self._loading:
                self._loading[key] = self._pool.submit(self._run, key), time.monotonic()
            future, began = self._loading[key]
        try:
            return future.result(max(0.0, began + self.bounds.seconds - time.monotonic()))
        except FutureTimeout:
            self._avoid(key, f"it was not loaded within {self.bounds.seconds:g} seconds")
            return None
        except CancelledError:
            return None

    def is_avoided(self, key: K) -> bool:
        """Whether a load failed, or took too long, a moment ago."""
        with self._lock:
            return self._is_avoided(key)

    def clear(self) -> None:
        """Frees all results."""
        with self._lock:
            self._results.clear()
            self._nbytes = 0

    def close(self) -> None:
        """Frees all results, and starts no more loads; does not wait for those that run."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all results that are kept."""
        return self._nbytes

    def _run(self, key: K) -> V | None:
        try:
            result = self.load(key)
        except Exception as error:
            # Whatever it is, the engine goes on without.
            reason = str(error) if isinstance(error, KvtoolError) else f"{type(error).__name__}: {error}"
            self._avoid(key, reason)
            with self._lock:
                self._loading.pop(key, None)
            return None
        with self._lock:
            self._loading.pop(key, None)
            self._avoided.pop(key, None)
            if not self._is_closed:
                self._keep(key, result)
        return result

    def _keep(self, key: K, result: V) -> None:
        self._results[key] = result
        self._nbytes += self.size(result)
        while self._nbytes > self.bounds.nbytes:
            _, oldest = self._results.popitem(last=False)
            self._nbytes -= self.size(oldest)

    def _avoid(self, key: K, reason: str) -> None:
        with self._lock:
            is_known = self._is_avoided(key)
            self._avoided[key] = time.monotonic() + AVOIDED_SECONDS
        if not is_known:
            _log.warning("%s is not loaded: %s", key, reason)

    def _is_avoided(self, key: K) -> bool:
        return time.monotonic() < self._avoided.get(key, 0.0)
