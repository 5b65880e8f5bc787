"""What a request may be, before anyone looks at it: how large its body, and how long it may take to arrive."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import limits
from .errors import ApiError, respond

STREAMED = {"/v1/artifacts/": limits.UPLOAD_BYTES, "/v1/calibrations/": limits.CALIBRATION_BYTES}
"""Where a PUT's body is passed on as it comes, and how large it may be."""


class WholeBody:
    """Takes the body in before the application runs. One that is larger than ``most`` bytes gets 413, one that has not
    arrived after ``seconds`` 408, however steadily it trickles. What is ``STREAMED`` is passed on instead, and has more
    time the more of it has come."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for path, most in STREAMED.items():
            if scope["method"] == "PUT" and scope["path"].startswith(path):
                await self.app(scope, _paced(Request(scope), receive, most, self.seconds), send)
                return
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(Request(scope), receive)
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

    async def _read(self, request: Request, receive: Receive) -> bytes | None:
        """None where the client went away meanwhile."""
        parts: list[bytes] = []
        size = _announced(request)
        while size <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)
            size = max(size, sum(map(len, parts)))
        raise _too_large(self.most)


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
            raise _too_large(most)
        try:
            async with asyncio.timeout_at(until + size / limits.UPLOAD_RATE):
                message = await receive()
        except TimeoutError:
            raise ApiError(
                408, f"the body came slower than {limits.UPLOAD_RATE:,} bytes a second", Connection="close"
            ) from None
        size += len(message.get("body", b""))
        if size > most:
            raise _too_large(most)
        is_whole = not message.get("more_body")
        return message

    return paced


def _announced(request: Request) -> int:
    said = request.headers.get("content-length", "")
    return int(said) if said.isdecimal() and len(said) < 20 else 0


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most:,} bytes", Connection="close")
