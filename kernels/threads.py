"""How many threads torch computes with. No other module sets this.

torch's number of threads belongs to the thread that sets it, but that of the linear algebra library under it (MKL) to the
process. So whoever sets it in another thread sets it back here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def use_one_thread() -> None:
    """Has this process compute with one thread from now on: there are other processes for the other cores."""
    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: linear algebra on several threads rounds otherwise than on one.

    Encoded bytes may not depend on the number of threads.
    """
    with _restored():
        torch.set_num_threads(1)
        yield


@contextmanager
def thread_pool(workers: int | None = None, *, threads: int = 1) -> Iterator[ThreadPoolExecutor]:
    """A pool of ``workers`` that each compute with ``threads`` threads; as many workers as torch has threads by default.

    Several workers that each computed on all cores would stall one another. The caller computes with one worker's
    number of threads, or its own, until the pool is closed.
    """
    with (
        _restored() as before,
        ThreadPoolExecutor(workers or before, initializer=torch.set_num_threads, initargs=(threads,)) as pool,
    ):
        yield pool


def background_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool of ``workers`` that each compute with one thread, while the caller goes on with all of its own.

    The threads' names begin with ``name``.
    """
    with _restored():
        pool = ThreadPoolExecutor(workers, name, _begin_with_one)
        started = threading.Barrier(workers + 1)
        for _ in range(workers):
            pool.submit(started.wait)
        started.wait()
    return pool


def background_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Starts a thread that computes with one thread, while the caller goes on with all of its own.

    A process that ends does not wait for it.
    """
    is_set = threading.Event()

    def begin() -> None:
        _begin_with_one()
        is_set.set()
        run()

    with _restored():
        thread = threading.Thread(target=begin, name=name, daemon=True)
        thread.start()
        is_set.wait()
    return thread


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of ``calls``, each of which computes with its share of torch's threads.

    They run one after the other where there are fewer threads than calls.
    """
    threads = torch.get_num_threads()
    if threads < len(calls):
        return [call() for call in calls]
    with thread_pool(len(calls), threads=threads // len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def one_thread_each(call: Callable[..., T], *items: Iterable[Any]) -> list[T]:
    """``call`` of each of ``items``, on all of torch's threads, each of them by one: the same whatever their number."""
    with thread_pool() as pool:
        return list(pool.map(call, *items))


def _begin_with_one() -> None:
    """Sets the number of threads of a thread that goes on while others compute with more."""
    # A thread that was never asked would take over, at its first computation, the number that was set last.
    torch.get_num_threads()
    torch.set_num_threads(1)


@contextmanager
def _restored() -> Iterator[int]:
    """Sets the number of threads back at the end; gives what it was."""
    threads = torch.get_num_threads()
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
