"""The process around the application: its socket, its number of connections, and how it stops."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from kvtool import limits
from kvtool.errors import FAILED, UsageError
from kvtool.server.http.protocol import Connection, Connections

_OTHER_FILES = 512
"""Files that are open beside connections: artifacts, libraries, the log."""

_BACKLOG = 256
"""Connections that are accepted at a time. Fewer than their bound, so that each is read before newer ones take its place."""


class Server(uvicorn.Server):
    """A uvicorn server that drains.

    ``on_ready`` is called once it listens. At the first SIGTERM or SIGINT it calls ``on_drain`` and finishes what runs. A
    second one, or ``drain`` seconds, end the process as it is.
    """

    def __init__(
        self, app: ASGIApp, *, drain: float, on_ready: Callable[[], None], on_drain: Callable[[], None]
    ) -> None:
        config = uvicorn.Config(
            cast(Any, app),
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=int(limits.IDLE_SECONDS),
            h11_max_incomplete_event_size=limits.HEAD_BYTES,
        )
        super().__init__(config)
        self.server_state: Connections = Connections(max_connections())
        self.drain, self.on_ready, self.on_drain = drain, on_ready, on_drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.is_closing = True
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            _end("a second signal")
        self.on_drain()
        deadline = threading.Timer(self.drain, _end, [f"{self.drain:g} seconds"])
        deadline.daemon = True
        deadline.start()
        super().handle_exit(sig, frame)


def max_connections() -> int:
    """How many connections there may be. Raises the limit of open files for them as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.CONNECTIONS + _OTHER_FILES
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(min(limits.CONNECTIONS, files - _OTHER_FILES), files // 2)


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket. Raises ``UsageError`` where that is not possible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
        # Connections inherit it. asyncio sets it only where the socket names its protocol, which this one does not. Without
        # it an answer's body waits until the client has acknowledged the headers, mostly 40 ms later.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        reason, remedy = f"cannot be listened on ({error})", "choose another, or --port 0 for any"
        raise UsageError(f"--host {host} --port {port}", reason, remedy) from error


def _end(why: str) -> None:
    # Nothing is lost: what is committed is on the disk. Threads that compute would keep any gentler way waiting.
    os.write(2, f"ended after {why}; what was still being answered was cut off\n".encode())
    os._exit(FAILED)
