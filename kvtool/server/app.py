"""The server: which path is whose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvtool import limits
from kvtool.errors import KvtoolError
from kvtool.model.conversation import forget_words
from kvtool.server.cached_contents import routes as cached_contents
from kvtool.server.http.auth import METRICS, Authentication
from kvtool.server.http.body_limits import WholeBody
from kvtool.server.http.errors import ApiError, model_missing, respond
from kvtool.server.http.logs import Logged
from kvtool.server.http.openapi import describe
from kvtool.server.openai import routes as openai_api
from kvtool.server.runtime.service import Serving
from kvtool.server.store_api import artifacts, documents
from kvtool.server.web import routes as web


def create_app(serving: Serving, tokens: Mapping[str, str] | None = None) -> Starlette:
    """An ASGI application that runs the model of ``serving`` while it lives. ``tokens`` say whose each is."""

    if len(serving.tenants) > 1:
        forget_words(serving.model)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        serving.start()
        yield
        serving.stop()

    app = Starlette(
        routes=[
            Route("/healthz", healthy),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", openai_api.complete, methods=["POST"]),
            Route("/v1/chat/completions", openai_api.chat, methods=["POST"]),
            *documents.ROUTES,
            *cached_contents.ROUTES,
            *artifacts.ROUTES,
            *web.ROUTES,
        ],
        exception_handlers={
            HTTPException: _not_there,
            KvtoolError: respond,
            ApiError: respond,
            Exception: respond,
        },
        middleware=[
            Middleware(Logged, metrics=serving.metrics),
            Middleware(Authentication, tenants=serving.tenants, tokens=tokens or {}),
            Middleware(WholeBody, most=limits.REQUEST_BYTES, seconds=limits.REQUEST_SECONDS),
        ],
        lifespan=lifespan,
    )
    app.state.serving = serving
    return app


async def healthy(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    serving: Serving = request.app.state.serving
    if reason := serving.not_ready:
        return JSONResponse({"status": reason}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    serving: Serving = request.app.state.serving
    # They are of all tenants together, and would tell each when the others ask and whether it hits.
    if request.state.tenant.name not in ("", METRICS):
        raise ApiError(403, f"/metrics: is for the tenant {METRICS!r} of the server's --tokens alone")
    serving.metrics.running.set(serving.scheduler.running)
    serving.metrics.waiting.set(serving.waiting)
    serving.metrics.memory.set(serving.memory.used)
    serving.metrics.memory_limit.set(serving.memory.limit)
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request) -> Response:
    return JSONResponse(describe(request.app.routes))


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(request.app.state.serving)]})


async def model(request: Request) -> Response:
    serving: Serving = request.app.state.serving
    if (name := request.path_params["name"]) != serving.model.name:
        raise model_missing(name, serving.model.name)
    return JSONResponse(_model(serving))


def _model(serving: Serving) -> dict[str, object]:
    return {
        "id": serving.model.name,
        "object": "model",
        "created": serving.started,
        "owned_by": "kvtool",
        "context": serving.model.context,
    }


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is no such path", 405: f"{request.method} is not possible here"}
    found = ApiError(error.status_code, f"{request.url.path}: {what.get(error.status_code, error.detail)}")
    return JSONResponse(found.body, error.status_code, error.headers)
