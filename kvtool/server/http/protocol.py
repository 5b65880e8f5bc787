"""Connections: how many there may be, and how long each may hold its place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from kvtool import limits
from kvtool.server.http.errors import ApiError

_SLICE = 16 * limits.KIB
_LINGER_SECONDS = 2.0


class Connections(ServerState):
    """All connections of a server, at most ``max_connections``.

    ``waiting`` are those of which no request is being answered, the one that has waited longest first.
    """

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.waiting: dict[Connection, None] = {}
        self.is_closing = False


class Connection(H11Protocol):
    """HTTP/1.1 with a deadline for each request's head, and for a client that does not take its answer.

    Where all places are taken, the connection that has waited longest for its next request gives its place to a new one:
    silent connections cannot keep others out.
    """

    server_state: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._is_refused = False

    @property
    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        state = self.server_state
        if len(state.connections) > state.max_connections:
            next(iter(state.waiting), self).drop()
        if not transport.is_closing():
            self._await_head()

    def data_received(self, data: bytes) -> None:
        # h11 measures a head only while it is incomplete: fed in slices, none can be much larger than its bound.
        for start in range(0, len(data), _SLICE):
            if self._is_refused or self.transport.is_closing():
                return
            super().data_received(data[start : start + _SLICE])
        if self._is_waiting:
            self._await_head()
        else:
            self._no_longer_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.server_state.is_closing:
            # The request came while the server began to stop, too late to be answered with Connection: close.
            self.transport.close()
        elif self._is_waiting and not self.transport.is_closing():
            self.server_state.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_waiting()
        _cancel(self._stalled)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._later(limits.STALLED_SECONDS, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)

    def send_400_response(self, msg: str) -> None:
        if len(self.conn.trailing_data[0]) > limits.HEAD_BYTES:
            self._refuse(431, f"the request's headers are larger than {limits.HEAD_BYTES:,} bytes")
        else:
            self._refuse(400, "this is not an HTTP request that can be understood")

    def drop(self) -> None:
        # Others are counted before the loop comes to take this one out.
        self.server_state.connections.discard(self)
        self._no_longer_waiting()
        self.transport.abort()

    def _await_head(self) -> None:
        if self._head_deadline is None and not self._is_refused:
            self.server_state.waiting[self] = None
            self._head_deadline = self._later(limits.HEAD_SECONDS, self._no_head)

    def _no_longer_waiting(self) -> None:
        self.server_state.waiting.pop(self, None)
        _cancel(self._head_deadline)
        self._head_deadline = None

    def _no_head(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, f"the request's headers did not arrive within {limits.HEAD_SECONDS:g} seconds")
        else:
            self.drop()

    def _refuse(self, status: int, message: str) -> None:
        """Answers where that is still possible, and closes once the client has had time to read it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.drop()
            return
        body = json.dumps(ApiError(status, message).body).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        head = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        # A connection closed with bytes unread is reset, and the answer is lost: what still comes is taken and ignored.
        self._is_refused = True
        self._no_longer_waiting()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self._later(_LINGER_SECONDS, self.transport.abort)

    def _later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, action)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
