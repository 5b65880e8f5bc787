"""The page at ``/``, and the numbers that its charts are drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from kvtool.server.http.errors import ApiError
from kvtool.server.http.openapi import JSON, Operation, Resource
from kvtool.server.runtime.service import Service

_FOLDER = Path(__file__).with_name("page")
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The page shows names and answers that others wrote. Should one of them ever become markup, it still can neither run
# nor reach anyone.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _response(path: Path) -> Response:
    media = f"{_MEDIA[path.suffix]}; charset=utf-8"
    return Response(path.read_bytes(), headers={**_HEADERS, "Content-Type": media})


_FILES = {f"/page/{path.name}": _response(path) for path in sorted(_FOLDER.iterdir())}
_FILES["/"] = _FILES.pop("/page/index.html")

PATHS = tuple(_FILES)
"""The page's own paths. They say nothing of anyone, so that they need no token."""


class MemoryStats(TypedDict):
    used: int
    limit: int


class TokenStats(TypedDict):
    prompt: int
    cached: int
    generated: int


class TimeStats(TypedDict):
    seconds: float
    count: int


class FirstTokenStats(TypedDict):
    cached: TimeStats
    uncached: TimeStats


class Stats(TypedDict):
    """Answers ``running`` and bytes of ``memory`` now; all others are totals since the server started."""

    running: int
    memory: MemoryStats
    requests: int
    tokens: TokenStats
    time_to_first_token: FirstTokenStats


async def get_stats(request: Request) -> Response:
    """Raises ``ApiError`` where the numbers would tell of other tenants."""
    service: Service = request.app.state.service
    if len(service.tenants) > 1:
        raise ApiError(403, "/v1/stats: these are everyone's numbers, and this server has several tenants")
    metrics = service.metrics
    body: Stats = {
        "running": service.scheduler.running,
        "memory": {"used": service.memory.used, "limit": service.memory.limit},
        "requests": int(_total(metrics.requests)),
        "tokens": {
            "prompt": int(_total(metrics.prompt_tokens)),
            "cached": int(_total(metrics.cached_tokens)),
            "generated": int(_total(metrics.generation_tokens)),
        },
        "time_to_first_token": {
            "cached": _times(metrics.first_token, cached="yes"),
            "uncached": _times(metrics.first_token, cached="no"),
        },
    }
    return JSONResponse(body)


def _times(metric: Any, **labels: str) -> TimeStats:
    return {"seconds": _total(metric, "_sum", **labels), "count": int(_total(metric, "_count", **labels))}


def _total(metric: Any, suffix: str = "_total", **labels: str) -> float:
    """The sum over all of the metric's samples that have ``labels``; 0 before there is any."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    return sum(
        float(sample.value)
        for sample in samples
        if sample.name.endswith(suffix) and labels.items() <= sample.labels.items()
    )


ROUTES = [
    *(Route(path, response, methods=["GET"], include_in_schema=False) for path, response in _FILES.items()),
    Resource("/v1/stats", GET=Operation(get_stats, "The numbers that the page draws", {JSON: Stats})),
]
