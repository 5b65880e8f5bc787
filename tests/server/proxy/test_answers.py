"""The events of an engine's stream, however they are cut, and their bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

import pytest

from kvtool import limits
from kvtool.server.http.errors import ApiError
from kvtool.server.proxy.answers import events

STREAM = b": note\ndata: one\n\ndata:two\r\ndata: 2\r\n\r\nevent: x\n\ndata:\n\ndata: last\n"
READ = [b"one", b"two\n2", b"", b"last"]


def read(chunks: Iterable[bytes]) -> list[bytes]:
    async def given() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def gathered() -> list[bytes]:
        return [event async for event in events(given())]

    return asyncio.run(gathered())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_they_are_the_same_however_they_come(size: int) -> None:
    assert read(STREAM[start : start + size] for start in range(0, len(STREAM), size)) == READ


@pytest.mark.parametrize(
    "chunk",
    [b"x" * 64, b"data: " + b"x" * 57 + b"\n", b"data: x\n" * 8],
    ids=["a line", "lines", "short lines"],
)
def test_one_event_is_bounded(monkeypatch: pytest.MonkeyPatch, chunk: bytes) -> None:
    monkeypatch.setattr(limits, "ENGINE_BYTES", 1000)
    taken = 0

    def endless() -> Iterable[bytes]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield chunk

    with pytest.raises(ApiError, match="larger than 1,000 bytes"):
        read(endless())
    # Not counted: what is no data, such as the names of fields.
    assert taken * len(chunk) <= 6 * limits.ENGINE_BYTES
    assert read([b"data: " + b"x" * 900 + b"\n\n"] * 3) == [b"x" * 900] * 3


def test_a_long_line_is_not_searched_again_and_again() -> None:
    """Were it, 32 MiB in small chunks would be 64 GiB to look at."""
    line = b"x" * (32 * limits.MIB)
    chunks = [line[start : start + 8192] for start in range(0, len(line), 8192)]
    started = time.process_time()
    assert read([b"data: ", *chunks, b"\n\n"]) == [line]
    assert time.process_time() - started < 3
