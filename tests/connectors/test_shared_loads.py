"""Loads that callers share: their memory and time are bounded, and ones that hang keep no others from loading."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvtool.connectors.shared_loads import Bounds, SharedLoads
from kvtool.errors import StoreError

SECONDS = 20.0


class Gate:
    """Loads, each of which waits until its key is let through; how many run at once, and how many bytes they have."""

    def __init__(self) -> None:
        self.open = {key: threading.Event() for key in "abcdefgh"}
        self.running: set[str] = set()

    def load(self, key: str) -> str:
        self.running.add(key)
        self.open[key].wait(SECONDS)
        self.running.remove(key)
        return key.upper()

    def let(self, keys: str) -> None:
        for key in keys:
            self.open[key].set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.let("abcdefgh")


Make = Callable[..., SharedLoads[str, str]]


@pytest.fixture
def make(gate: Gate) -> Iterator[Make]:
    made: list[SharedLoads[str, str]] = []

    def make(nbytes: int = 100, seconds: float = SECONDS, threads: int = 2, size: int = 1) -> Any:
        made.append(SharedLoads(gate.load, lambda key: size, Bounds(nbytes, seconds, threads)))
        return made[-1]

    yield make
    for loads in made:
        loads.close()


def asked(loads: SharedLoads[str, str], keys: str) -> list[threading.Thread]:
    threads = [threading.Thread(target=loads.get, args=(key,), daemon=True) for key in keys]
    for thread in threads:
        thread.start()
    return threads


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_is_being_loaded_counts_as_memory(make: Make, gate: Gate) -> None:
    loads = make(nbytes=25, threads=4, size=10)
    gate.let("a")
    assert loads.get("a") == "A"
    assert loads.nbytes == 10
    threads = asked(loads, "bcde")
    until(lambda: len(gate.running) == 2)
    time.sleep(0.05)
    # The kept result made room for two, and the others wait.
    assert (len(gate.running), loads.nbytes) == (2, 20)
    gate.let("bcde")
    for thread in threads:
        thread.join(SECONDS)
    assert loads.nbytes == 20
    loads.clear()
    assert loads.nbytes == 0
    assert [loads.get(key) for key in "abcde"] == list("ABCDE")


def test_a_load_that_finds_no_memory_in_time_is_a_miss(
    make: Make, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    loads = make(nbytes=15, seconds=0.1, size=10)
    with caplog.at_level(logging.WARNING):
        asked(loads, "a")
        until(lambda: "a" in gate.running)
        assert loads.get("b") is None
        until(lambda: "b is not loaded" in caplog.text)
    assert gate.running == {"a"}


def test_loads_that_hang_keep_no_others_from_loading(make: Make, gate: Gate) -> None:
    loads = make(seconds=0.1)
    gate.let("efgh")
    assert [loads.get(key) for key in "ab"] == [None, None]
    assert gate.running == {"a", "b"}
    assert [loads.get(key) for key in "ef"] == ["E", "F"]
    assert loads.is_avoided("a")
    gate.let("a")
    # It came after all, for whoever asks next.
    until(lambda: not loads.is_avoided("a"))
    assert loads.get("a") == "A"


def test_nothing_is_waited_for_past_the_callers_time(make: Make, gate: Gate) -> None:
    loads = make()
    began = time.monotonic()
    for key in "abc":
        assert loads.get(key, began + 0.1) is None
    assert time.monotonic() - began < 5
    gate.let("d")
    assert loads.get("d", time.monotonic() + SECONDS) == "D"


def test_who_has_little_time_does_not_end_anothers_load(make: Make, gate: Gate) -> None:
    loads = make()
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(loads.get("a")))
    thread.start()
    until(lambda: "a" in gate.running)
    assert loads.get("a", time.monotonic()) is None
    assert not loads.is_avoided("a")
    gate.let("a")
    thread.join(SECONDS)
    assert found == ["A"]


def test_after_its_end_all_is_a_miss(make: Make, gate: Gate) -> None:
    loads = make()
    (thread,) = asked(loads, "a")
    until(lambda: "a" in gate.running)
    loads.close()
    gate.let("ab")
    thread.join(SECONDS)
    until(lambda: loads.nbytes == 0)
    assert loads.get("b") is None


def test_an_error_is_one_line_and_frees_its_memory(caplog: pytest.LogCaptureFixture) -> None:
    def fail(key: str) -> str:
        raise StoreError(key, "is gone")

    loads = SharedLoads(fail, lambda key: 10, Bounds(15, SECONDS))
    with caplog.at_level(logging.WARNING):
        assert [loads.get("a"), loads.get("a"), loads.get("b")] == [None] * 3
    assert [record.message for record in caplog.records] == [
        "a is not loaded: a: is gone",
        "b is not loaded: b: is gone",
    ]
    assert loads.nbytes == 0
    loads.close()
