"""A thread that was made by a bound one runs on all of the process's cores again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtool.system.cores import process_cores, use_cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no threads")
def test_a_bound_makers_thread() -> None:
    cores = os.sched_getaffinity(0)
    assert process_cores() >= cores
    one = {min(cores)}

    def bound() -> tuple[set[int], set[int]]:
        os.sched_setaffinity(0, one)
        with ThreadPoolExecutor(1) as pool:
            before = pool.submit(os.sched_getaffinity, 0).result()
            pool.submit(use_cores, process_cores()).result()
            return before, pool.submit(os.sched_getaffinity, 0).result()

    with ThreadPoolExecutor(1) as pool:
        before, after = pool.submit(bound).result()
    assert before == one
    assert after == cores
    use_cores(set())
    assert os.sched_getaffinity(0) == cores
