"""Threads whose calls may hang: others take their place, and the process ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future

import pytest
import torch

from kvtool.connectors.daemon_pool import DaemonPool

SECONDS = 20.0


@pytest.fixture
def come() -> Iterator[threading.Event]:
    """What hung calls wait for."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def make(come: threading.Event) -> Iterator[Callable[..., DaemonPool]]:
    made: list[DaemonPool] = []

    def make(workers: int, spares: int | None = None) -> DaemonPool:
        made.append(DaemonPool(workers, "tested", spares))
        return made[-1]

    yield make
    come.set()
    for pool in made:
        pool.shutdown()


def hung(pool: DaemonPool, come: threading.Event) -> Future[bool]:
    call = pool.submit(come.wait)
    until(call.running)
    return call


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_calls_give_results_and_errors(make: Callable[..., DaemonPool]) -> None:
    pool = make(2)
    assert list(pool.map(pow, [2, 3], [4, 2])) == [16, 9]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(SECONDS)
    assert pool.submit(int, "1f", base=16).result(SECONDS) == 31


def test_each_computes_with_one_thread_and_the_caller_with_its_own(make: Callable[..., DaemonPool]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert make(1).submit(torch.get_num_threads).result(SECONDS) == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_worker_that_a_given_up_call_holds_is_replaced_up_to_a_bound(
    make: Callable[..., DaemonPool], come: threading.Event
) -> None:
    pool = make(1, spares=2)
    calls = []
    for _ in range(3):
        calls.append(hung(pool, come))
        pool.give_up(calls[-1])
        pool.give_up(calls[-1])
    # All three hang, and no fourth is started.
    waiting = pool.submit(int, 5)
    with pytest.raises(TimeoutError):
        waiting.result(0.05)
    pool.give_up(waiting)
    with pytest.raises(CancelledError):
        waiting.result(SECONDS)
    come.set()
    assert [call.result(SECONDS) for call in calls] == [True] * 3
    until(lambda: len(pool._threads) == 1)
    assert pool.submit(int, 6).result(SECONDS) == 6


def test_a_call_that_ends_after_all_gives_its_worker_back(
    make: Callable[..., DaemonPool], come: threading.Event
) -> None:
    pool = make(1)
    call = hung(pool, come)
    pool.give_up(call)
    other = hung(pool, threading.Event())
    pool.give_up(other)
    come.set()
    assert call.result(SECONDS)
    # The other call still holds its worker for ever: the one that came back goes on.
    assert pool.submit(int, 7).result(SECONDS) == 7
    pool.give_up(call)
    assert len(pool._threads) == 2
    pool._threads.clear()  # So that nobody waits for the one that hangs.


def test_a_pool_that_is_shut_down_takes_no_calls_and_drops_those_that_wait(
    make: Callable[..., DaemonPool], come: threading.Event
) -> None:
    pool = make(1)
    call, waiting = hung(pool, come), pool.submit(int, 5)
    pool.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="takes no calls"):
        pool.submit(int, 5)
    pool.give_up(call)
    assert len(pool._threads) == 1


def test_a_process_ends_while_calls_hang_and_waits_for_those_that_compute() -> None:
    program = """
import sys, threading, time
from kvtool.connectors import daemon_pool
from kvtool.connectors.shared_loads import Bounds, SharedLoads

daemon_pool.ENDING_SECONDS = 1.0
pool = daemon_pool.DaemonPool(1, "computes")
pool.submit(lambda: (time.sleep(0.3), print("computed", flush=True)))
loads = SharedLoads(lambda key: threading.Event().wait(), lambda key: 1, Bounds(10, 0.05))
print([loads.get(key) for key in "abc"], flush=True)
if sys.argv[1] == "close":
    loads.close()
"""
    for how in ("close", "leave"):
        ended = subprocess.run(
            [sys.executable, "-c", program, how], capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode, ended.stdout) == (0, "[None, None, None]\ncomputed\n"), ended.stderr
