"""Threads that compute beside a caller which goes on with all of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
import torch

from kvtool.kernels.threads import background_pool, background_thread


@pytest.fixture
def three() -> Iterator[None]:
    """Has the caller compute with three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_background_pools_threads_compute_with_one(three: None) -> None:
    with background_pool(2, "tested") as pool:
        assert [pool.submit(torch.get_num_threads).result(20) for _ in range(4)] == [1] * 4
    assert torch.get_num_threads() == 3


def test_a_background_thread_computes_with_one_and_is_not_waited_for(three: None) -> None:
    counted: SimpleQueue[int] = SimpleQueue()
    go = threading.Event()
    thread = background_thread(lambda: go.wait(20) and counted.put(torch.get_num_threads()), "tested")
    assert (torch.get_num_threads(), thread.daemon, thread.name) == (3, True, "tested")
    go.set()
    assert counted.get(timeout=20) == 1
