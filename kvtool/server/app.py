"""The application: all routes, the middleware before them, and the service that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from typing_extensions import TypedDict

from kvtool import limits
from kvtool.errors import KvtoolError
from kvtool.model.conversation import forget_words
from kvtool.server.cached_contents import routes as cached_contents
from kvtool.server.cached_contents.store import Contents
from kvtool.server.cached_contents.worker import PrefillWorker
from kvtool.server.http.auth import METRICS, Authentication
from kvtool.server.http.body_limits import BodyLimits
from kvtool.server.http.cross_site import CrossSiteGuard
from kvtool.server.http.errors import ApiError
from kvtool.server.http.logs import Logged
from kvtool.server.http.openapi import JSON, Operation, Resource, describe
from kvtool.server.openai import models
from kvtool.server.openai import routes as openai_api
from kvtool.server.runtime.errors import respond
from kvtool.server.runtime.service import Service
from kvtool.server.runtime.tenant import local_part
from kvtool.server.store_api import artifacts, documents
from kvtool.server.web import routes as web


class Status(TypedDict):
    status: str


async def get_health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def get_readiness(request: Request) -> Response:
    reason = request.app.state.service.not_ready
    return JSONResponse({"status": reason or "ok"}, 503 if reason else 200)


async def get_metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    # They are of all tenants together, and would tell each when the others ask and whether it hits.
    if request.state.tenant.name not in ("", METRICS):
        raise ApiError(403, f"/metrics: is for the tenant {METRICS!r} of the server's --tokens alone")
    service.metrics.running.set(service.scheduler.running)
    service.metrics.waiting.set(service.waiting)
    service.metrics.caches.set(len(service.memory))
    service.metrics.memory.set(service.memory.used)
    service.metrics.memory_limit.set(service.memory.limit)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def get_openapi(request: Request) -> Response:
    return JSONResponse(describe(request.app.routes))


_STATUS = {JSON: Status}

ROUTES: list[BaseRoute] = [
    Resource("/healthz", is_open=True, GET=Operation(get_health, "Whether the process answers", _STATUS)),
    Resource(
        "/readyz",
        is_open=True,
        GET=Operation(get_readiness, "Whether requests should be sent here", _STATUS, statuses=[200, 503]),
    ),
    Resource("/metrics", GET=Operation(get_metrics, "Metrics, as Prometheus has them", {"text/plain": str})),
    Resource(
        "/openapi.json", is_open=True, GET=Operation(get_openapi, "This description", {JSON: dict[str, Any]})
    ),
    *models.ROUTES,
    *openai_api.ROUTES,
    *documents.ROUTES,
    *cached_contents.ROUTES,
    *artifacts.ROUTES,
    *web.ROUTES,
]

# Headers that OpenAI's client sends, and those of answers that a page must be let read by name.
_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
    "allow_headers": ["*"],
    "expose_headers": ["X-Request-Id", "Retry-After", "ETag", "Content-Range", "Accept-Ranges"],
    "allow_private_network": True,
}

_OPEN = [route.path for route in ROUTES if isinstance(route, Resource) and route.is_open]


def create_app(
    service: Service, tokens: Mapping[str, str] | None = None, origins: Sequence[str] = ()
) -> Starlette:
    """An ASGI application that runs the model of ``service`` while it lives.

    ``tokens`` are the tenants' names by token. Pages of ``origins`` may use it from a browser, beside its own page.
    """
    if len(service.tenants) > 1:
        forget_words(service.model)
    tenants = {tenant.name: tenant for tenant in service.tenants.values()}
    contents = {name: Contents(local_part(tenant.store)) for name, tenant in tenants.items()}
    workers = [PrefillWorker(each, service, tenants[name]) for name, each in contents.items()]
    open_paths = [*_OPEN, *web.PATHS]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.warm_up()
        service.start()
        for worker in workers:
            worker.start()
        yield
        for worker in workers:
            worker.stop()
        service.stop()

    app = Starlette(
        routes=ROUTES,
        exception_handlers={HTTPException: _no_such_route, KvtoolError: respond, ApiError: respond},
        middleware=[
            Middleware(Logged, metrics=service.metrics),
            Middleware(CrossSiteGuard, origins=origins, open_paths=open_paths, names_are_checked=not tokens),
            *([Middleware(CORSMiddleware, allow_origins=origins, **_CORS)] if origins else []),
            Middleware(Authentication, tenants=service.tenants, tokens=tokens or {}, open_paths=open_paths),
            Middleware(BodyLimits, seconds=limits.REQUEST_SECONDS, streamed=artifacts.UPLOADS),
        ],
        lifespan=lifespan,
    )
    app.state.service, app.state.contents = service, contents
    return app


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reasons = {404: "there is no such path", 405: f"{request.method} is not possible here"}
    message = f"{request.url.path}: {reasons.get(error.status_code, error.detail)}"
    return ApiError(error.status_code, message, **(error.headers or {})).response()
