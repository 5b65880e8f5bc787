"""Answers of the engine on their way to a client: as they come, and no longer than the client waits for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kvtool.server.http.errors import ApiError
from kvtool.server.http.openapi import EVENTS
from kvtool.server.openai.routes import client_gone, event_of
from kvtool.server.proxy.answers import DONE, ChatAnswers, events
from kvtool.server.proxy.engine import Engine, without_hop_by_hop

_Result = TypeVar("_Result")

_GONE = 499


class Relay(StreamingResponse):
    """A stream made of the engine's ``answer``, which is closed at its end, or once the client is gone."""

    def __init__(
        self, answer: httpx2.Response, content: AsyncIterator[bytes | str], status: int = 200
    ) -> None:
        super().__init__(content, status)
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here, since a generator that nobody began never ends. Shielded, since a client that goes away cancels this.
            await asyncio.shield(self.answer.aclose())


def passed_on(engine: Engine, answer: httpx2.Response) -> Response:
    """The engine's answer as it is."""
    relay = Relay(answer, engine.chunks(answer), answer.status_code)
    raw = [(name.lower(), value) for name, value in answer.headers.raw]
    relay.raw_headers = without_hop_by_hop(raw)
    if (length := answer.headers.get("content-length")) is not None:
        relay.raw_headers.append((b"content-length", length.encode()))
    return relay


def streamed_chat(engine: Engine, answer: httpx2.Response, chat: ChatAnswers) -> Response:
    relay = Relay(answer, _chat_events(engine, answer, chat))
    relay.headers["content-type"] = f"{EVENTS}; charset=utf-8"
    return relay


async def whole_chat(engine: Engine, answer: httpx2.Response, chat: ChatAnswers) -> Response:
    try:
        return JSONResponse(chat.whole(await engine.whole(answer)))
    finally:
        await asyncio.shield(answer.aclose())


async def _chat_events(engine: Engine, answer: httpx2.Response, chat: ChatAnswers) -> AsyncIterator[str]:
    try:
        yield event_of(chat.first())
        async for data in events(engine.chunks(answer)):
            if data.strip() == DONE.encode():
                yield f"data: {DONE}\n\n"
                return
            for chunk in chat.chunks(data):
                yield event_of(chunk)
        raise ApiError(502, "the engine broke off its answer; its log may say why", code="engine_failed")
    except ApiError as error:
        yield f"data: {json.dumps(error.body)}\n\n"


async def unless_gone(request: Request, work: Callable[[], Awaitable[_Result]]) -> _Result | Response:
    """What ``work`` gives, which is given up once the client has gone away."""
    watching = asyncio.ensure_future(client_gone(request))
    working = asyncio.ensure_future(work())
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=_GONE)
    finally:
        watching.cancel()
        working.cancel()
        # What it has opened is closed, before this request is at its end.
        await asyncio.gather(watching, working, return_exceptions=True)
