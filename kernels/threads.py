"""How many threads torch computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: linear algebra on several threads rounds otherwise than on one.

    What is encoded may not depend on how many there are.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each of ``calls`` gives, each of them computing on its own share of torch's threads.

    Two that each compute on all cores would stall one another.
    """
    threads = torch.get_num_threads()
    if threads < len(calls):
        return [call() for call in calls]
    share = threads // len(calls)
    try:
        with ThreadPoolExecutor(len(calls), initializer=torch.set_num_threads, initargs=(share,)) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls]]
    finally:
        torch.set_num_threads(threads)
