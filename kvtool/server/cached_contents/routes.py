"""/v1/cachedContents, shaped like Gemini's: a text is prefilled once, and stands before as many questions as wanted."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvtool.server.cached_contents.schemas import (
    CachedContent,
    CachedContentList,
    Deleted,
    Expiry,
    NewContent,
    new_record,
)
from kvtool.server.cached_contents.store import KIND, Contents, Record
from kvtool.server.http.errors import ApiError
from kvtool.server.http.json_body import parse_body
from kvtool.server.http.openapi import JSON, Operation, Parameter, Resource
from kvtool.server.runtime.errors import read_only
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.local import LocalStore

PAGE, MAX_PAGE = 100, 1000
"""Contents on a page: where the request does not say it, and at most."""

CHANGEABLE = frozenset({"ttl", "expireTime", "expire_time"})


async def create_cached_content(request: Request) -> Response:
    contents = _contents(request)
    body = await parse_body(request, NewContent)
    record = await run_in_threadpool(new_record, request.app.state.service.model, body)
    await run_in_threadpool(contents.add, record)
    return JSONResponse(_shown(record, contents))


def list_cached_contents(request: Request) -> Response:
    contents, query = _contents(request), request.query_params
    size, after = query.get("pageSize") or str(PAGE), query.get("pageToken", "")
    if not (size.isascii() and size.isdigit() and len(size) < 10):
        raise ApiError(400, f"pageSize: expected a number from 1 to {MAX_PAGE}", param="pageSize")
    count = min(int(size) or PAGE, MAX_PAGE)
    records = [record for record in contents if record.id > after]
    body: CachedContentList = {"cachedContents": [_shown(record, contents) for record in records[:count]]}
    if records[count:]:
        body["nextPageToken"] = records[count - 1].id
    return JSONResponse(body)


def get_cached_content(request: Request) -> Response:
    contents = _contents(request)
    return JSONResponse(_shown(contents.find(request.path_params["id"]), contents))


async def update_cached_content(request: Request) -> Response:
    """Changes when it expires; nothing else can be changed."""
    contents = _contents(request)
    expires = (await parse_body(request, Expiry)).after(time.time())
    fields = {field.strip() for field in (request.query_params.get("updateMask") or "ttl").split(",")}
    if expires is None or not fields <= CHANGEABLE:
        raise ApiError(400, "expected ttl or expireTime; nothing else can be changed", param="updateMask")
    record = await run_in_threadpool(contents.change, request.path_params["id"], expires=expires)
    return JSONResponse(_shown(record, contents))


def delete_cached_content(request: Request) -> Response:
    _contents(request).delete(request.path_params["id"])
    return JSONResponse({})


def _contents(request: Request) -> Contents:
    """The tenant's contents. Raises ``ApiError`` where none could be made."""
    tenant: Tenant = request.state.tenant
    if not isinstance(tenant.store, LocalStore):
        raise read_only("cachedContents")
    contents: Contents = request.app.state.contents[tenant.name]
    return contents


def _shown(record: Record, contents: Contents) -> CachedContent:
    done = record.tokens if record.state == "ACTIVE" else contents.progress.get(record.id, 0)
    body: CachedContent = {
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


_PAGING = (
    Parameter("pageSize", Annotated[int, Field(ge=0, lt=10**9)], f"At most {MAX_PAGE:,}, {PAGE} unless said"),
    Parameter("pageToken", str, "nextPageToken of the page before"),
)
_MASK = Parameter("updateMask", Literal["ttl", "expireTime"], "The field that is changed")
_CONTENT = {JSON: CachedContent}

ROUTES = [
    Resource(
        f"/v1/{KIND.rstrip('/')}",
        GET=Operation(
            list_cached_contents,
            "Cached contents, the oldest first",
            {JSON: CachedContentList},
            parameters=_PAGING,
        ),
        POST=Operation(
            create_cached_content,
            "Prefills a text, to be asked about",
            _CONTENT,
            request={JSON: NewContent},
            errors=[404, 429, 507],
        ),
    ),
    Resource(
        f"/v1/{KIND}{{id}}",
        GET=Operation(get_cached_content, "One cached content", _CONTENT, errors=[404]),
        PATCH=Operation(
            update_cached_content,
            "Changes when it expires",
            _CONTENT,
            request={JSON: Expiry},
            parameters=[_MASK],
            errors=[404, 507],
        ),
        DELETE=Operation(delete_cached_content, "Deletes it", {JSON: Deleted}, errors=[404]),
    ),
]
