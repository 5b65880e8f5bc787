"""What is asked of LMCache's SDK, over a stand-in for it: no look-up fetches keys and values, and no error of it gets through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvtool.connectors.lmcache import session
from kvtool.connectors.lmcache.server_state import Address
from kvtool.connectors.lmcache.session import SHARED_MEMORY, Session
from kvtool.errors import StoreError

ADDRESS = Address("127.0.0.1", 5555, salt="tenant")


class Odd(Exception):
    """As ZeroMQ's and msgspec's, of no kind that Python has."""


class Context:
    """The SDK's context of a server that has the first ``held`` tokens of everything."""

    chunk_size = 4

    def __init__(self, held: int = 0) -> None:
        self.held = held
        self.answers: list[Any] = [None, None, held]
        self.said: list[Any] = []
        self.transfer_ctx = SimpleNamespace(_context=type(SHARED_MEMORY, (), {})())
        self._req_client = SimpleNamespace(free_lookup_locks=self._free)

    def maybe_submit_lookup_request(self, request: str, tokens: list[int], salt: str) -> None:
        self.said.append(("look up", tokens, salt))

    def check_lookup_result(self, request: str) -> int | None:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end_session(self, request: str) -> None:
        self.said.append("end")

    def _create_key(self, tokens: list[int], start: int, end: int, request: str, salt: str) -> Any:
        return tokens, start, end, salt

    def _free(self, key: Any, size: int) -> Any:
        self.said.append(("free", *key))
        return SimpleNamespace(result=lambda timeout: None)

    def store(self, *_: Any) -> bool:
        raise Odd("the message is no msgpack")

    def close(self) -> None:
        raise Odd("not a socket")


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def connect(context: Any) -> Session:
        def made(*_: Any, **__: Any) -> Any:
            if isinstance(context, BaseException):
                raise context
            return context

        monkeypatch.setattr(session, "sdk", lambda address: SimpleNamespace(connect=made))
        return Session(ADDRESS, "tiny")

    return connect


def test_a_look_up_counts_tokens_and_lets_what_it_found_go(connect: Any) -> None:
    context = Context(held=8)
    ids = list(range(15))
    assert connect(context).held(ids) == 8
    assert context.said == [("look up", ids[:12], "tenant"), ("free", ids[:8], 0, 8, "tenant"), "end"]
    nothing = Context()
    assert connect(nothing).held(ids) == 0
    assert nothing.said == [("look up", ids[:12], "tenant"), "end"]
    assert connect(nothing).held(ids[:3]) == 0


def test_a_look_up_that_never_ends_is_an_error(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SECONDS", 0.05)
    context = Context()
    context.answers = [None] * 1000
    with pytest.raises(StoreError, match=r"took more than 0\.05 seconds"):
        connect(context).held(list(range(8)))
    assert context.said[-1] == "end"


@pytest.mark.parametrize(
    "error", [Odd("odd"), RuntimeError("no layout"), TimeoutError("60 s"), KeyError("mp")]
)
def test_every_error_of_the_sdk_is_a_store_error(connect: Any, error: Exception) -> None:
    with pytest.raises(
        StoreError, match=f"lmcache://127.0.0.1:5555: cannot be used for tiny .{type(error).__name__}"
    ):
        connect(error)
    context = Context()
    context.answers = [error]
    made = connect(context)
    with pytest.raises(StoreError, match=type(error).__name__):
        made.held(list(range(8)))
    with pytest.raises(StoreError, match="no msgpack"):
        made.store(torch.zeros(2, 1, 4, 8), [1, 2, 3, 4])


def test_a_connection_that_cannot_be_closed_is_no_error(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connect(Context()).close()
    assert "its connection was not closed (not a socket)" in caplog.text
