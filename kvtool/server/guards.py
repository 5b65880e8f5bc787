"""What a request may be, before anyone looks at it: how large its body, and how long it may take to arrive."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, respond


class WholeBody:
    """Takes the body in before the application runs. One that is larger than ``most`` bytes gets 413, one that has not
    arrived after ``seconds`` 408, however steadily it trickles."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
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
        said = request.headers.get("content-length", "")
        parts: list[bytes] = []
        size = int(said) if said.isdigit() else 0
        while size <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)
            size = max(size, sum(map(len, parts)))
        raise ApiError(413, f"the body is larger than {self.most:,} bytes", Connection="close")


def _replay(body: bytes, receive: Receive) -> Receive:
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again
