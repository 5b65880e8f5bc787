"""What a request may be, before anyone looks at it: how large its body, and how long it may take to arrive."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvtool import limits
from kvtool.server.http.errors import ApiError, respond

STREAMED = {"/v1/artifacts/": limits.UPLOAD_BYTES, "/v1/calibrations/": limits.CALIBRATION_BYTES}
"""Where a PUT's body is passed on as it comes, and how large it may be."""


class WholeBody:
    """Takes the body in before the application runs. One that is larger than ``most`` bytes gets 413, one that has not
    arrived after ``seconds`` 408, however steadily it trickles. Those of all requests together are bounded too: 503. What is
    ``STREAMED`` is passed on instead, and has more time the more of it has come."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds
        self.all = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if len(scope["headers"]) > limits.HEAD_FIELDS:
            error = ApiError(431, f"the request has more than {limits.HEAD_FIELDS} headers")
            await (await respond(Request(scope), error))(scope, receive, send)
            return
        for path, most in STREAMED.items():
            if scope["method"] == "PUT" and scope["path"].startswith(path):
                await self.app(scope, _paced(Request(scope), receive, most, self.seconds), send)
                return
        with ExitStack() as held:
            await self._whole(scope, receive, send, held)

    async def _whole(self, scope: Scope, receive: Receive, send: Send, held: ExitStack) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(Request(scope), receive, held)
        except TimeoutError:
            error = ApiError(
                408, f"the request did not arrive within {self.seconds:g} seconds", Connection="close"
            )
        except ApiError as found:
            error = found
        else:
            if body is not None:
                await self.app(scope, _replay(body, receive), send)
            return
        await (await respond(Request(scope), error))(scope, receive, send)

    async def _read(self, request: Request, receive: Receive, held: ExitStack) -> bytes | None:
        """None where the client went away meanwhile."""
        body = bytearray()
        # Without Connection: close, so that a client that sends first and then reads gets to read it.
        too_large = _too_large(self.most)
        if _announced(request) > self.most:
            raise too_large
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            self._hold(len(part), held)
            body += part
            if len(body) > self.most:
                raise too_large
            if not message.get("more_body"):
                return bytes(body)

    def _hold(self, size: int, held: ExitStack) -> None:
        if self.all + size > limits.REQUESTS_BYTES:
            raise ApiError(503, "too much is being sent at once; try again later", Retry_After="1")
        self.all += size
        held.callback(self._give_back, size)

    def _give_back(self, size: int) -> None:
        self.all -= size


def _replay(body: bytes, receive: Receive) -> Receive:
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


def _paced(request: Request, receive: Receive, most: int, seconds: float) -> Receive:
    """Raises ``ApiError`` for a body that grows larger than ``most`` bytes, and for one that comes too slowly."""
    until = asyncio.get_running_loop().time() + seconds
    size, is_whole = 0, False

    async def paced() -> Message:
        nonlocal size, is_whole
        if is_whole:
            return await receive()
        if max(size, _announced(request)) > most:
            raise _too_large(most, Connection="close")
        try:
            async with asyncio.timeout_at(until + size / limits.UPLOAD_RATE):
                message = await receive()
        except TimeoutError:
            raise ApiError(
                408, f"the body came slower than {limits.UPLOAD_RATE:,} bytes a second", Connection="close"
            ) from None
        size += len(message.get("body", b""))
        if size > most:
            raise _too_large(most, Connection="close")
        is_whole = not message.get("more_body")
        return message

    return paced


def _announced(request: Request) -> int:
    said = request.headers.get("content-length", "")
    # More digits say no more than that it is too large, and are slow to read.
    return int(said[:20]) if said.isdecimal() else 0


def _too_large(most: int, **headers: str) -> ApiError:
    return ApiError(413, f"the body is larger than {most:,} bytes", **headers)
