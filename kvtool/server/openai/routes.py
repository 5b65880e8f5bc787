"""/v1/completions and /v1/chat/completions, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kvtool.server.http.errors import ApiError
from kvtool.server.http.json_body import parse_body
from kvtool.server.http.openapi import EVENTS, JSON, Operation, Resource
from kvtool.server.openai.completions import Completions
from kvtool.server.openai.documents import named_documents
from kvtool.server.openai.responses import (
    ChatCompletion,
    ChatResponses,
    ChunkEvent,
    Responses,
    TextCompletion,
    TextResponses,
)
from kvtool.server.openai.schemas import AnyRequest, ChatRequest, CompletionRequest
from kvtool.server.runtime.errors import api_error, model_missing
from kvtool.server.runtime.service import Service


async def create_chat_completion(request: Request) -> Response:
    return await _answer(request, await parse_body(request, ChatRequest), ChatResponses)


async def create_completion(request: Request) -> Response:
    return await _answer(request, await parse_body(request, CompletionRequest), TextResponses)


async def _answer(request: Request, body: AnyRequest, responses: type[Responses]) -> Response:
    service: Service = request.app.state.service
    tenant, started = request.state.tenant, time.monotonic()
    if body.model != service.model.name:
        raise model_missing(body.model, service.model.name)
    if service.scheduler.running + service.waiting >= service.limits.concurrency:
        raise ApiError(429, "too many requests are being answered; try again later", Retry_After="1")
    contents = request.app.state.contents[tenant.name]
    documents = named_documents(body, tenant.store, contents, service.model)
    completions = Completions(service, tenant, body.to_requests(documents), started, request.state.log)
    try:
        await completions.start()
    except BaseException:
        await completions.close()
        raise
    bodies = responses(completions, body.model)
    if body.stream:
        return _Stream(completions, bodies, with_usage=body.wants_usage)
    return await _whole(request, completions, bodies)


async def _whole(request: Request, completions: Completions, bodies: Responses) -> Response:
    """Waits for the answer, or until the client goes away."""
    try:
        watching = asyncio.ensure_future(client_gone(request))
        generating = asyncio.ensure_future(completions.whole())
        await asyncio.wait({watching, generating}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not generating.done():
            generating.cancel()
            return Response(status_code=499)
        choices = generating.result()
    finally:
        await completions.close()
    # In a thread: the scores of long prompts are megabytes, and other answers go on meanwhile.
    return await run_in_threadpool(lambda: JSONResponse(bodies.whole(choices)))


async def client_gone(request: Request) -> None:
    """Waits until the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(completions: Completions, bodies: Responses, *, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events, the last of them [DONE]. An error on the way is an event too."""
    usage: dict[str, Any] = {"usage": None} if with_usage else {}
    try:
        if first := bodies.first():
            yield event_of(bodies.event(first, **usage))
        async for delta in completions.deltas():
            for choice in bodies.delta(delta):
                yield event_of(bodies.event([choice], **usage))
        if with_usage:
            yield event_of(bodies.event([], usage=bodies.usage))
        yield "data: [DONE]\n\n"
    except Exception as error:
        completions.log.error = error
        yield f"data: {json.dumps(api_error(error).body)}\n\n"


def event_of(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class _Stream(StreamingResponse):
    def __init__(self, completions: Completions, bodies: Responses, *, with_usage: bool) -> None:
        super().__init__(_events(completions, bodies, with_usage=with_usage), media_type=EVENTS)
        self.completions = completions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here, since a generator that nobody began never ends. Shielded, since a client that goes away cancels this.
            await asyncio.shield(self.completions.close())


def _resource(
    path: str, handler: Callable[..., object], summary: str, request: type, whole: type
) -> Resource:
    content, errors = {JSON: whole, EVENTS: ChunkEvent}, [404, 409, 429, 503]
    return Resource(path, POST=Operation(handler, summary, content, request={JSON: request}, errors=errors))


ROUTES = [
    _resource("/v1/completions", create_completion, "Continues a text", CompletionRequest, TextCompletion),
    _resource(
        "/v1/chat/completions", create_chat_completion, "Answers a conversation", ChatRequest, ChatCompletion
    ),
]
