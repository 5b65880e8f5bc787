"""Bounds on a request's body, before the application sees it: its size, and how long it may take to arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvtool import limits
from kvtool.server.http.errors import ApiError


class BodyLimits:
    """Middleware that takes a body in before the application runs.

    A body larger than ``limits.REQUEST_BYTES`` gets 413. One that has not arrived after ``seconds`` gets 408, however
    steadily it trickles. The bodies of all requests together are bounded too: 503.

    ``streamed`` is the size allowed to a PUT's body by the beginning of its path. Such a body is passed on as it comes, and
    has more time the more of it has come.
    """

    def __init__(self, app: ASGIApp, seconds: float, streamed: Mapping[str, int]) -> None:
        self.app, self.seconds, self.streamed = app, seconds, streamed
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with ExitStack() as held:
            try:
                bounded = await self._bounded(Request(scope), receive, held)
            except ApiError as refusal:
                await refusal.response()(scope, receive, send)
                return
            if bounded is not None:
                await self.app(scope, bounded, send)

    async def _bounded(self, request: Request, receive: Receive, held: ExitStack) -> Receive | None:
        """The application's ``receive``; None where the client went away meanwhile."""
        if len(request.scope["headers"]) > limits.HEAD_FIELDS:
            raise ApiError(431, f"the request has more than {limits.HEAD_FIELDS} headers")
        for path, max_bytes in self.streamed.items():
            if request.method == "PUT" and request.scope["path"].startswith(path):
                return _paced(request, receive, max_bytes, self.seconds)
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(request, receive, held)
        except TimeoutError:
            message = f"the request did not arrive within {self.seconds:g} seconds"
            raise ApiError(408, message, Connection="close") from None
        return None if body is None else _replay(body, receive)

    async def _read(self, request: Request, receive: Receive, held: ExitStack) -> bytes | None:
        """The whole body; None where the client went away meanwhile."""
        body = bytearray()
        # Without Connection: close, so that a client that sends first and then reads gets to read it.
        too_large = _too_large(limits.REQUEST_BYTES)
        if _announced_bytes(request) > limits.REQUEST_BYTES:
            raise too_large
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            self._hold(len(part), held)
            body += part
            if len(body) > limits.REQUEST_BYTES:
                raise too_large
            if not message.get("more_body"):
                return bytes(body)

    def _hold(self, size: int, held: ExitStack) -> None:
        if self.held_bytes + size > limits.REQUESTS_BYTES:
            raise ApiError(503, "too much is being sent at once; try again later", Retry_After="1")
        self.held_bytes += size
        held.callback(self._release, size)

    def _release(self, size: int) -> None:
        self.held_bytes -= size


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _paced(request: Request, receive: Receive, max_bytes: int, seconds: float) -> Receive:
    """Raises ``ApiError`` for a body that grows larger than ``max_bytes``, and for one that comes too slowly."""
    until = asyncio.get_running_loop().time() + seconds
    size, is_complete = 0, False

    async def paced() -> Message:
        nonlocal size, is_complete
        if is_complete:
            return await receive()
        if max(size, _announced_bytes(request)) > max_bytes:
            raise _too_large(max_bytes, Connection="close")
        try:
            async with asyncio.timeout_at(until + size / limits.UPLOAD_RATE):
                message = await receive()
        except TimeoutError:
            raise ApiError(
                408, f"the body came slower than {limits.UPLOAD_RATE:,} bytes a second", Connection="close"
            ) from None
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise _too_large(max_bytes, Connection="close")
        is_complete = not message.get("more_body")
        return message

    return paced


def _announced_bytes(request: Request) -> int:
    length = request.headers.get("content-length", "")
    # More digits say no more than that it is too large, and are slow to read.
    return int(length[:20]) if length.isdecimal() else 0


def _too_large(max_bytes: int, **headers: str) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes:,} bytes", **headers)
