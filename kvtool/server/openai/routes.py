"""/v1/completions and /v1/chat/completions, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kvtool.server.http.errors import ApiError, api_error, model_missing
from kvtool.server.http.json_body import parsed
from kvtool.server.openai.responses import Chat, Shape, Text
from kvtool.server.openai.schemas import ChatRequest, CompletionRequest
from kvtool.server.runtime.generation import Answering
from kvtool.server.runtime.service import Serving


async def chat(request: Request) -> Response:
    return await _answer(request, ChatRequest, Chat)


async def complete(request: Request) -> Response:
    return await _answer(request, CompletionRequest, Text)


async def _answer(
    request: Request, kind: type[ChatRequest] | type[CompletionRequest], shape: type[Shape]
) -> Response:
    serving: Serving = request.app.state.serving
    asked = await parsed(request, kind)
    started = time.monotonic()
    if asked.model != serving.model.name:
        raise model_missing(asked.model, serving.model.name)
    if serving.scheduler.running + serving.waiting >= serving.limits.concurrency:
        raise ApiError(429, "too many requests are being answered; try again later", Retry_After="1")
    answering = Answering(serving, request.state.tenant, asked, started, request.state.note)
    serving.waiting += 1
    try:
        await answering.start()
    finally:
        serving.waiting -= 1
    shaped = shape(answering)
    if asked.stream:
        return _Stream(shaped)
    try:
        watching = asyncio.ensure_future(_gone(request))
        reading = asyncio.ensure_future(answering.whole())
        await asyncio.wait({watching, reading}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not reading.done():
            reading.cancel()
            return Response(status_code=499)
        choices = reading.result()
    finally:
        await answering.close()
    return JSONResponse(shaped.whole(choices))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(shaped: Shape) -> AsyncIterator[str]:
    """Server-sent events, the last of them [DONE]; what goes wrong on the way is an event too."""
    answering = shaped.answering
    usage = {"usage": None} if answering.asked.wants_usage else {}

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        body = {**shaped.head(shaped.chunk), "choices": choices, **usage, **more}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    try:
        if first := shaped.first():
            yield event(first)
        async for delta in answering.deltas():
            for choice in shaped.delta(delta):
                yield event([choice])
        if answering.asked.wants_usage:
            yield event([], usage=answering.usage)
        yield "data: [DONE]\n\n"
    except Exception as error:
        answering.note.error = error
        yield f"data: {json.dumps(api_error(error).body)}\n\n"


class _Stream(StreamingResponse):
    def __init__(self, shaped: Shape) -> None:
        super().__init__(_events(shaped), media_type="text/event-stream")
        self.answering = shaped.answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here, since a generator that nobody began never ends; shielded, since who goes away cancels this.
            await asyncio.shield(self.answering.close())
