"""The application: documents by name become token ids, and everything else is passed on to the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvtool import limits
from kvtool.errors import KvtoolError
from kvtool.server.http.body_limits import BodyLimits
from kvtool.server.http.cross_site import CrossSiteGuard, Remedies
from kvtool.server.http.errors import ApiError
from kvtool.server.http.json_body import parse_body
from kvtool.server.http.logs import Logged
from kvtool.server.http.metrics import Metrics
from kvtool.server.openai.schemas import AnyRequest, ChatRequest, CompletionRequest
from kvtool.server.proxy.answers import ChatAnswers
from kvtool.server.proxy.bodies import engine_body, is_over_documents, refuse_unsupported
from kvtool.server.proxy.engine import Engine, authorization
from kvtool.server.proxy.prompts import EnginePrompt, Prompts
from kvtool.server.proxy.relay import passed_on, streamed_chat, unless_gone, whole_chat
from kvtool.server.runtime.errors import document_missing, respond
from kvtool.server.runtime.request import Prompt
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.trust.signatures import NotSigned

COMPLETIONS = "/v1/completions"

SCHEMAS: Mapping[str, type[AnyRequest]] = MappingProxyType(
    {COMPLETIONS: CompletionRequest, "/v1/chat/completions": ChatRequest}
)
"""What a request over documents is, by its path."""

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

_REMEDIES = Remedies("start the proxy with --allow-host", "ask it from a program")


def create_proxy(engine: Engine, prompts: Prompts, names: Collection[str] = ()) -> Starlette:
    """An ASGI application in front of ``engine``, which may be asked by address, as localhost, and by ``names``."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(prompts.warm_up)
        yield
        await engine.close()

    app = Starlette(
        routes=[Route("/{path:path}", answer, methods=METHODS)],
        exception_handlers={KvtoolError: _respond, ApiError: _respond},
        middleware=[
            Middleware(Logged, metrics=Metrics()),
            Middleware(
                CrossSiteGuard,
                origins=(),
                open_paths=(),
                names_are_checked=True,
                remedies=_REMEDIES,
                names=names,
            ),
            Middleware(BodyLimits, seconds=limits.REQUEST_SECONDS, streamed={}),
        ],
        lifespan=lifespan,
    )
    app.state.engine, app.state.prompts = engine, prompts
    return app


async def _respond(request: Request, error: Exception) -> Response:
    # GET /v1/documents is the engine's to answer.
    if isinstance(error, (DocumentMissing, NotSigned)):
        error = document_missing(str(error.subject), "kvtool ls shows what is there")
    return await respond(request, error)


async def answer(request: Request) -> Response:
    schema = SCHEMAS.get(request.scope["path"]) if request.method == "POST" else None
    body = await request.body()
    if schema is None or not is_over_documents(_parsed(body)):
        return await unless_gone(request, lambda: _pass_on(request, body))
    asked = await parse_body(request, schema)
    return await unless_gone(request, lambda: _answer_over_documents(request, asked))


def _parsed(body: bytes) -> Any:
    """The JSON in ``body``; None where there is none, which the engine then says."""
    # Of most requests, the text alone tells that no document is named.
    if b"documents" not in body and b"cached_content" not in body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


async def _pass_on(request: Request, body: bytes) -> Response:
    engine: Engine = request.app.state.engine
    # As it was sent: decoded, another path may be meant.
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
    target = path + b"?" + query if query else path
    return passed_on(engine, await engine.send(request.method, target, request.headers.raw, content=body))


async def _answer_over_documents(request: Request, asked: AnyRequest) -> Response:
    engine: Engine = request.app.state.engine
    prompts: Prompts = request.app.state.prompts
    names = refuse_unsupported(asked)
    made = await run_in_threadpool(_made, prompts, names, asked.to_prompts())
    body = engine_body(asked, made, prompts.model.context)
    response = await engine.send("POST", COMPLETIONS.encode(), authorization(request.headers), json=body)
    if response.is_success and isinstance(asked, ChatRequest):
        return await _chat(engine, response, asked)
    return passed_on(engine, response)


def _made(prompts: Prompts, names: Sequence[str], asked: Sequence[Prompt]) -> list[EnginePrompt]:
    made, tokens = list[EnginePrompt](), 0
    for prompt in asked:
        made.append(prompts.after(names, prompt))
        tokens += len(made[-1].token_ids)
        if len(made) > 1 and tokens > limits.PLANNED_TOKENS:
            message = f"prompt: with its documents, more than {limits.PLANNED_TOKENS:,} tokens; send several requests"
            raise ApiError(400, message, param="prompt")
    return made


async def _chat(engine: Engine, response: httpx2.Response, asked: ChatRequest) -> Response:
    chat = ChatAnswers(asked.model, asked.n or 1, asked.n_logprobs)
    if asked.stream:
        return streamed_chat(engine, response, chat)
    return await whole_chat(engine, response, chat)
