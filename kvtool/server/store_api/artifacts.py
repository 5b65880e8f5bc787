"""Artifacts and calibrations of the tenant's own store, to the byte.

What another tenant has is missing in the same way as what nobody has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from anyio import AsyncFile, CancelScope, fail_after, from_thread, to_thread, wrap_file
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Scope, Send
from starlette.types import Receive as ReceiveMessage
from typing_extensions import TypedDict

from kvtool import limits
from kvtool.artifact.sealed import open_file, stat_plain
from kvtool.digest import is_digest
from kvtool.server.http.errors import ApiError
from kvtool.server.http.openapi import BINARY, JSON, Operation, Parameter, Resource
from kvtool.server.runtime.errors import read_only
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.backends.backend import NotThere
from kvtool.store.base import Store
from kvtool.store.local import LocalStore
from kvtool.store.verified_write import Refused

PathOf: TypeAlias = Callable[[str], Path]
Receive: TypeAlias = Callable[[str, Iterable[bytes]], int]

UPLOADS = {"/v1/artifacts/": limits.UPLOAD_BYTES, "/v1/calibrations/": limits.CALIBRATION_BYTES}
"""The beginnings of paths whose PUT streams its body, and how many bytes that may have."""


class Uploaded(TypedDict):
    digest: str
    bytes: int


async def get_artifact(request: Request) -> Response:
    store: Store = request.state.tenant.store
    return await _get(request, store.locate_artifact)


async def put_artifact(request: Request) -> Response:
    return await _put(request, lambda local: (local.artifact_path, local.receive))


async def get_calibration(request: Request) -> Response:
    store: Store = request.state.tenant.store
    return await _get(request, store.locate_calibration)


async def put_calibration(request: Request) -> Response:
    return await _put(request, lambda local: (local.calibrations.path_of, local.calibrations.receive))


async def _get(request: Request, locate: Callable[[str], Path]) -> Response:
    digest = request.path_params["digest"]
    try:
        path = await to_thread.run_sync(locate, digest)
        stat = await to_thread.run_sync(stat_plain, path)
    except (FileNotFoundError, NotThere):
        message = f"{digest[:80]}: there is no such artifact or calibration"
        raise ApiError(404, message, code="artifact_not_found") from None
    headers = _headers(digest)
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return _File(path, stat_result=stat, media_type=BINARY, headers=headers)


async def _put(request: Request, places: Callable[[LocalStore], tuple[PathOf, Receive]]) -> Response:
    """Answers 201 for what is new, 200 for what was there; it is checked either way."""
    tenant: Tenant = request.state.tenant
    if not is_digest(digest := request.path_params["digest"]):
        raise ApiError(400, f"{digest[:80]}: is not a digest; expected 64 of 0-9 and a-f", param="digest")
    store = tenant.store
    if not isinstance(store, LocalStore):
        raise read_only(digest)
    body = request.stream()
    path_of, receive = places(store)

    length = request.headers.get("content-length")
    if tenant.quota and length is None:
        raise ApiError(411, f"{digest}: needs Content-Length, since the store has a quota")

    def keep() -> tuple[bool, int]:
        was_there = path_of(digest).is_file()
        # What mends a broken file takes no more room.
        with tenant.admitted(0 if was_there else int(length or 0)), store.writing():
            chunks = iter(lambda: from_thread.run(anext, body, b""), b"")
            receive(digest, chunks)
            return was_there, stat_plain(path_of(digest)).st_size

    try:
        # What has come meanwhile waits in the socket: an answer now would break the connection of who is still sending.
        with fail_after(limits.UPLOAD_SECONDS):
            await tenant.uploads.acquire_on_behalf_of(request)
    except TimeoutError:
        raise ApiError(429, "too many uploads at a time; try again later", Retry_After="5") from None
    try:
        was_there, size = await to_thread.run_sync(keep, limiter=tenant.upload_threads)
    except Refused as error:
        raise ApiError(400, str(error), code="digest_mismatch") from error
    except ClientDisconnect:
        raise ApiError(400, "the request's body did not arrive") from None
    finally:
        tenant.uploads.release_on_behalf_of(request)
    uploaded: Uploaded = {"digest": digest, "bytes": size}
    return JSONResponse(uploaded, 200 if was_there else 201, _headers(digest))


class _File(FileResponse):
    """A file with ranges, If-Range and HEAD, which are FileResponse's. Impossible ranges get an error like all others."""

    chunk_size = 1 << 20
    # A few tokens of a layer are one range for each head of its keys and of its values.
    max_ranges = limits.RANGES

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[AsyncFile[bytes]]:
        """The file as it is before it is encrypted: clients have no key, and check its digest."""
        file = wrap_file(await to_thread.run_sync(open_file, Path(self.path)))
        try:
            yield file
        finally:
            with CancelScope(shield=True):
                await file.aclose()

    async def __call__(self, scope: Scope, receive: ReceiveMessage, send: Send) -> None:
        refusal: ApiError | None = None

        async def send_refusal(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] >= 400:
                size = self.headers["content-length"]
                reason = f"Range: expected bytes=FIRST-LAST within the file's {size}"
                refusal = ApiError(message["status"], reason, Content_Range=f"bytes */{size}")
                await refusal.response()(scope, receive, send)
            elif refusal is None:
                await send(message)

        await super().__call__(scope, receive, send_refusal)


def _headers(digest: str) -> dict[str, str]:
    return {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}


def is_known(request: Request, etag: str) -> bool:
    """Whether the client says that it has it already."""
    header = request.headers.get("if-none-match", "")
    return any(known.strip().removeprefix("W/") in ("*", etag) for known in header.split(","))


KNOWN = Parameter("If-None-Match", str, "ETags that the client has", place="header")
_RANGE = Parameter("Range", str, f"bytes=FIRST-LAST, {limits.RANGES:,} of them at most", place="header")


def _resource(kind: str, get: Callable[..., object], put: Callable[..., object]) -> Resource:
    return Resource(
        f"/v1/{kind}s/{{digest}}",
        GET=Operation(
            get,
            f"The file of one {kind}, or ranges of it",
            {BINARY: bytes, "multipart/byteranges": bytes},
            parameters=[_RANGE, KNOWN],
            statuses=[200, 206, 304],
            errors=[404, 416, 503],
        ),
        PUT=Operation(
            put,
            f"Stores one {kind}, once its bytes are those of its digest",
            {JSON: Uploaded},
            request={BINARY: bytes},
            statuses=[200, 201],
            errors=[411, 429, 507],
        ),
    )


ROUTES = [
    _resource("artifact", get_artifact, put_artifact),
    _resource("calibration", get_calibration, put_calibration),
]
