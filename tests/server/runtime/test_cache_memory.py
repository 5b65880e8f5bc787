"""Memory for caches: never more than the bound, nothing in use evicted, one load for all who wait."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtool.engines.cache import DocumentCache
from kvtool.server.runtime.cache_memory import Busy, CacheMemory, TooLarge


def load() -> DocumentCache:
    return DocumentCache(1)


def hold(memory: CacheMemory, key: str, nbytes: int = 40, private: int = 0, timeout: float = 0.01) -> object:
    return memory.holding(key, nbytes, load, private=private, timeout=timeout)


def test_what_is_held_is_shared_and_stays() -> None:
    memory = CacheMemory(100)
    with hold(memory, "a") as first, hold(memory, "a", private=5) as second:
        assert first is second
        assert memory.used == 45
    assert memory.used == 40
    with hold(memory, "a") as again:
        assert again is first


def test_the_longest_unused_is_given_up() -> None:
    memory = CacheMemory(100)
    caches = {}
    for key in ("a", "b", "a", "c"):
        with hold(memory, key) as caches[key]:
            pass
    assert memory.used == 80
    with hold(memory, "a") as kept, hold(memory, "b") as anew:
        assert kept is caches["a"]
        assert anew is not caches["b"]


def test_nothing_in_use_is_given_up() -> None:
    memory = CacheMemory(100)
    with hold(memory, "a"), memory.reserved(30, timeout=0), pytest.raises(Busy), hold(memory, "b"):
        pass
    assert memory.used == 40
    with pytest.raises(TooLarge, match="120 bytes"), hold(memory, "c", 110, private=10):
        pass
    assert memory.used == 40


def test_who_waits_gets_what_another_gives_back() -> None:
    memory = CacheMemory(100)
    held, free = threading.Event(), threading.Event()

    def use() -> None:
        with hold(memory, "a", 90):
            held.set()
            free.wait()

    using = threading.Thread(target=use)
    using.start()
    held.wait()
    threading.Timer(0.05, free.set).start()
    with hold(memory, "b", 90, timeout=10):
        assert memory.used == 90
    using.join()


def test_one_loads_for_all_and_a_failure_is_not_kept() -> None:
    memory, gate, loads = CacheMemory(100), threading.Barrier(4), []

    def fail() -> DocumentCache:
        loads.append(1)
        raise ValueError("broken")

    def use(_: int) -> str:
        gate.wait()
        try:
            with memory.holding("a", 40, fail, private=0, timeout=1):
                return "held"
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(use, range(4))) == {"broken"}
    assert 1 <= len(loads) <= 4
    assert memory.used == 0
    with hold(memory, "a"):
        assert memory.used == 40


def test_a_load_that_fails_while_another_request_waits_for_room() -> None:
    memory, loading, fail = CacheMemory(100), threading.Event(), threading.Event()

    def load_slowly() -> DocumentCache:
        loading.set()
        fail.wait()
        raise ValueError("broken")

    def use(private: int) -> str:
        try:
            with memory.holding("a", 40, load_slowly, private=private, timeout=10):
                return "held"
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use, 0)
        loading.wait()
        second = pool.submit(use, 80)
        while memory._entries["a"].pins < 2:
            pass
        fail.set()
        assert first.result() == second.result() == "broken"
    assert memory.used == 0


def test_many_at_once_stay_within_the_bound() -> None:
    memory, most = CacheMemory(200), []

    def use(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(60):
            key = chosen.choice("abcdefgh")
            with hold(memory, key, private=chosen.randint(0, 30), timeout=30):
                most.append(memory.used)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert 40 <= max(most) <= 200
    assert memory.used in range(0, 201, 40)
