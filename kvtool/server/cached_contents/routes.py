"""/v1/cachedContents, shaped like Gemini's: a text is prefilled once, and stands before as many questions as wanted."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvtool.server.cached_contents.schemas import Expiry, NewContent, planned
from kvtool.server.cached_contents.store import KIND, Contents, Record
from kvtool.server.http.errors import ApiError, read_only
from kvtool.server.http.json_body import parsed
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.local import LocalStore

PAGE, MOST_ON_PAGE = 100, 1000


async def make(request: Request) -> Response:
    contents = _contents(request)
    asked = await parsed(request, NewContent)
    record = await run_in_threadpool(planned, request.app.state.serving.model, asked)
    await run_in_threadpool(contents.add, record)
    return JSONResponse(_shown(record, contents))


def listed(request: Request) -> Response:
    contents, query = _contents(request), request.query_params
    size, after = query.get("pageSize") or str(PAGE), query.get("pageToken", "")
    if not (size.isascii() and size.isdigit() and len(size) < 10):
        raise ApiError(400, f"pageSize: expected a number from 1 to {MOST_ON_PAGE}", param="pageSize")
    most = min(int(size) or PAGE, MOST_ON_PAGE)
    found = [record for record in contents if record.id > after]
    body: dict[str, object] = {"cachedContents": [_shown(record, contents) for record in found[:most]]}
    if found[most:]:
        body["nextPageToken"] = found[most - 1].id
    return JSONResponse(body)


def shown(request: Request) -> Response:
    contents = _contents(request)
    return JSONResponse(_shown(contents.find(request.path_params["id"]), contents))


async def change(request: Request) -> Response:
    """Only when it expires can be changed."""
    contents = _contents(request)
    until = (await parsed(request, Expiry)).after(time.time())
    fields = {field.strip() for field in (request.query_params.get("updateMask") or "ttl").split(",")}
    if until is None or not fields <= {"ttl", "expireTime", "expire_time"}:
        raise ApiError(400, "expected ttl or expireTime; nothing else can be changed", param="updateMask")
    record = await run_in_threadpool(contents.change, request.path_params["id"], expires=until)
    return JSONResponse(_shown(record, contents))


def delete(request: Request) -> Response:
    _contents(request).delete(request.path_params["id"])
    return JSONResponse({})


def _contents(request: Request) -> Contents:
    """Raises ``ApiError`` where none could be made."""
    tenant: Tenant = request.state.tenant
    if not isinstance(tenant.store, LocalStore):
        raise read_only("cachedContents")
    return tenant.contents


def _shown(record: Record, contents: Contents) -> dict[str, Any]:
    done = record.tokens if record.state == "ACTIVE" else contents.progress.get(record.id, 0)
    body: dict[str, Any] = {
        "name": record.name,
        "model": f"models/{record.model}",
        "createTime": _time(record.created),
        "updateTime": _time(record.updated),
        "expireTime": _time(record.expires),
        "usageMetadata": {"totalTokenCount": record.prefix_tokens + record.tokens},
        "state": record.state,
        "progress": {"tokens": done, "tokensTotal": record.tokens},
    }
    if record.display_name is not None:
        body["displayName"] = record.display_name
    if record.error is not None:
        body["error"] = {"message": record.error}
    return body


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


ROUTES = [
    Route(f"/v1/{KIND.rstrip('/')}", listed),
    Route(f"/v1/{KIND.rstrip('/')}", make, methods=["POST"]),
    Route(f"/v1/{KIND}{{id}}", shown),
    Route(f"/v1/{KIND}{{id}}", change, methods=["PATCH"]),
    Route(f"/v1/{KIND}{{id}}", delete, methods=["DELETE"]),
]
