"""A pool of threads that no engine waits for: not to end, and not for a thread that reads from a store which hangs."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from kvtool.kernels.threads import background_thread

ENDING_SECONDS = 2.0
"""For which a process that ends waits for calls: one that computes when its interpreter goes away may crash."""

P = ParamSpec("P")
T = TypeVar("T")


class DaemonPool(Executor):
    """``workers`` daemon threads that each compute with one thread; their names begin with ``name``.

    Whoever waits no longer for a call gives it up. If it holds a worker, another one takes its place, up to ``spares``
    of them at a time, by default as many as there are workers. A call that ends after all gives its worker back.
    """

    def __init__(self, workers: int, name: str, spares: int | None = None) -> None:
        self.workers, self.name = workers, name
        self.spares = workers if spares is None else spares
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._given_up: set[Future[Any]] = set()
        self._is_closed = False
        with self._lock:
            for _ in range(workers):
                self._start()
        _pools.add(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Raises ``RuntimeError`` once the pool is shut down."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"{self.name}: takes no calls after shutdown")
            self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def give_up(self, call: Future[Any]) -> None:
        """Drops a call that has not begun, or replaces the worker that one holds. Nothing is done for one that is over."""
        if call.cancel():
            return
        with self._lock:
            if self._is_closed or call in self._given_up or not call.running():
                return
            self._given_up.add(call)
            if len(self._threads) < self.workers + self.spares:
                self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As every executor's. With ``wait``, also for calls that were given up."""
        with self._lock:
            self._is_closed = True
            threads = list(self._threads)
        if cancel_futures:
            self._drop()
        for _ in threads:
            self._calls.put(None)
        if wait:
            self.join(None)

    def join(self, seconds: float | None) -> None:
        """Waits until the workers of a pool that was shut down have ended, for so long at most."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _start(self) -> None:
        self._threads.add(background_thread(self._work, self.name))

    def _drop(self) -> None:
        while True:
            try:
                entry = self._calls.get_nowait()
            except Empty:
                return
            if entry is not None:
                entry[0].cancel()

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            future, call = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            if self._is_replaced(future):
                return
            # Nothing of a call stays alive while the next one is waited for.
            del entry, future, call
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _is_replaced(self, ended: Future[Any]) -> bool:
        """Whether there are enough workers without the one whose call has ended; it is then none of them any more."""
        with self._lock:
            self._given_up.discard(ended)
            if len(self._threads) - len(self._given_up) <= self.workers:
                return False
            self._threads.discard(threading.current_thread())
            return True


_pools: WeakSet[DaemonPool] = WeakSet()


def _end() -> None:
    until = time.monotonic() + ENDING_SECONDS
    pools = list(_pools)
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)
    for pool in pools:
        pool.join(max(0.0, until - time.monotonic()))


atexit.register(_end)
