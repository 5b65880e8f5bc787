"""Artifacts and calibrations, to the byte, of the tenant's own store: what another has is as absent as what nobody has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from anyio import from_thread, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Scope, Send
from starlette.types import Receive as ReceiveMessage

from kvtool import limits
from kvtool.digest import is_digest
from kvtool.server.http.errors import ApiError, read_only
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.backends.backend import NotThere
from kvtool.store.base import Store
from kvtool.store.local import LocalStore
from kvtool.store.verified_write import Refused

PathOf: TypeAlias = Callable[[str], Path]
Receive: TypeAlias = Callable[[str, Iterable[bytes]], int]


async def artifact(request: Request) -> Response:
    store: Store = request.state.tenant.store
    if request.method == "PUT":
        return await _put(request, lambda local: (local.artifact_path, local.receive))
    return await _get(request, store.locate_artifact)


async def calibration(request: Request) -> Response:
    store: Store = request.state.tenant.store
    if request.method == "PUT":
        return await _put(request, lambda local: (local.calibrations.path_of, local.calibrations.receive))
    return await _get(request, store.locate_calibration)


async def _get(request: Request, locate: Callable[[str], Path]) -> Response:
    digest = request.path_params["digest"]
    try:
        path = await to_thread.run_sync(locate, digest)
        found = await to_thread.run_sync(path.stat)
    except (FileNotFoundError, NotThere):
        raise _missing(digest) from None
    headers = _headers(digest)
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return _File(path, stat_result=found, media_type="application/octet-stream", headers=headers)


async def _put(request: Request, places: Callable[[LocalStore], tuple[PathOf, Receive]]) -> Response:
    """201 for what is new, 200 for what was there; it is checked either way."""
    digest = request.path_params["digest"]
    if not is_digest(digest):
        # Only what is a digest may become a path.
        raise _bad_digest(digest)
    tenant: Tenant = request.state.tenant
    store = tenant.store
    if not isinstance(store, LocalStore):
        raise read_only(digest)
    if tenant.uploads.available_tokens < 1:
        raise ApiError(429, "too many uploads at a time; try again later", Retry_After="5")
    body = request.stream()
    path_of, receive = places(store)

    def keep() -> tuple[bool, int]:
        with store.writing():
            was_there = path_of(digest).is_file()
            return was_there, receive(digest, iter(lambda: from_thread.run(anext, body, b""), b""))

    try:
        was_there, size = await to_thread.run_sync(keep, limiter=tenant.uploads)
    except Refused as error:
        raise ApiError(400, str(error), code="digest_mismatch") from error
    except ClientDisconnect:
        raise ApiError(400, "the request's body did not arrive") from None
    return JSONResponse({"digest": digest, "bytes": size}, 200 if was_there else 201, _headers(digest))


class _File(FileResponse):
    """Ranges, If-Range and HEAD are FileResponse's; what it says of a range that cannot be is said as we say things."""

    chunk_size = 1 << 20
    # Some tokens of a layer are a range for each head of its keys and of its values.
    max_ranges = limits.RANGES

    async def __call__(self, scope: Scope, receive: ReceiveMessage, send: Send) -> None:
        refusal: ApiError | None = None

        async def shaped(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refusal = ApiError(
                    message["status"],
                    f"Range: expected bytes=FIRST-LAST within the file's {self.headers['content-length']}",
                )
                described = {"Content-Range": f"bytes */{self.headers['content-length']}"}
                await JSONResponse(refusal.body, refusal.status, described)(scope, receive, send)
            elif refusal is None:
                await send(message)

        await super().__call__(scope, receive, shaped)


def _headers(digest: str) -> dict[str, str]:
    return {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}


def is_known(request: Request, etag: str) -> bool:
    """Whether the client says that it has it already."""
    said = request.headers.get("if-none-match", "")
    return any(known.strip().removeprefix("W/") in ("*", etag) for known in said.split(","))


def _missing(digest: str) -> ApiError:
    return ApiError(
        404, f"{digest[:80]}: there is no such artifact or calibration", code="artifact_not_found"
    )


def _bad_digest(digest: str) -> ApiError:
    return ApiError(400, f"{digest[:80]}: is not a digest; expected 64 of 0-9 and a-f", param="digest")


ROUTES = [
    Route("/v1/artifacts/{digest}", artifact, methods=["GET", "PUT"]),
    Route("/v1/calibrations/{digest}", calibration, methods=["GET", "PUT"]),
]
