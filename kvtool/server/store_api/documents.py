"""The documents of the tenant's own store, and which of them a prompt begins with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from kvtool.counts import counted
from kvtool.digest import digest
from kvtool.errors import KvtoolError, StoreError
from kvtool.server.http.errors import ApiError
from kvtool.server.http.json_body import parse_body
from kvtool.server.http.openapi import JSON, Operation, Parameter, Resource
from kvtool.server.runtime.errors import document_missing, model_missing, read_only
from kvtool.server.runtime.service import Service
from kvtool.server.runtime.tenant import Tenant
from kvtool.server.store_api.artifacts import KNOWN, is_known
from kvtool.store.base import Store
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document
from kvtool.store.trust.signatures import NotSigned


class DocumentEntry(TypedDict):
    """A document in the list.

    ``bytes`` and ``artifacts`` are by variant; ``artifacts``, ``manifest`` and ``prefix`` are digests.
    """

    name: str
    object: Literal["document"]
    created: int
    hits: int
    manifest: str
    model: str
    tokens: int
    segments: int
    prefix: str | None
    bytes: dict[str, int]
    artifacts: dict[str, list[str]]


class DocumentList(TypedDict):
    object: Literal["list"]
    data: list[DocumentEntry]


class Stored(TypedDict):
    """``manifest`` is its digest, and the ETag."""

    name: str
    manifest: str


class LookupRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: StrictStr
    token_ids: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1)]


class VariantEntry(TypedDict):
    artifact: str
    bytes: int


class LookupMatch(TypedDict):
    """The first ``tokens`` of the prompt are those of the prefix's artifact and of the segment's."""

    document: str
    segment: int
    tokens: int
    variants: dict[str, VariantEntry]
    prefix: str | None


def list_documents(request: Request) -> Response:
    """All that can be read; ``kvtool verify`` says what is wrong with the others."""
    tenant: Tenant = request.state.tenant
    entries = []
    for name in tenant.store:
        try:
            entries.append(_entry(tenant, tenant.store[name], tenant.store.committed(name)))
        except (KvtoolError, OSError):
            continue
    body: DocumentList = {"object": "list", "data": entries}
    return JSONResponse(body)


def _entry(tenant: Tenant, document: Document, committed: float) -> DocumentEntry:
    return {
        "name": document.name,
        "object": "document",
        "created": int(committed),
        "hits": tenant.hits[document.name],
        "manifest": digest(document.to_bytes()),
        "model": document.model["fingerprint"],
        "tokens": document.n_tokens,
        "segments": len(document.segments),
        "prefix": _prefix(document),
        "bytes": {name: document.nbytes(name) for name in document.variants},
        "artifacts": {
            name: [segment.variants[name].artifact for segment in document.segments]
            for name in document.variants
        },
    }


def get_document(request: Request) -> Response:
    """The manifest, to the byte."""
    store: Store = request.state.tenant.store
    name = request.path_params["name"]
    if name not in store:
        raise document_missing(name)
    manifest = store[name].to_bytes()
    headers = {"ETag": f'"{digest(manifest)}"', "Cache-Control": "private, no-cache"}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(manifest, media_type=JSON, headers=headers)


async def put_document(request: Request) -> Response:
    """Takes a manifest whose artifacts are here, in the place of the one that the client has seen, or of none."""
    tenant: Tenant = request.state.tenant
    name, store = request.path_params["name"], tenant.store
    if not isinstance(store, LocalStore):
        raise read_only(name)
    seen = request.headers.get("if-match")
    if seen is None and request.headers.get("if-none-match") != "*":
        raise ApiError(428, f"{name}: needs If-Match, with the ETag that is replaced, or If-None-Match: *")
    body = await request.body()
    was_there = await to_thread.run_sync(_replace, store, name, body, seen)
    stored: Stored = {"name": name, "manifest": digest(body)}
    return JSONResponse(stored, 200 if was_there else 201, {"ETag": f'"{stored["manifest"]}"'})


def _replace(store: LocalStore, name: str, body: bytes, seen: str | None) -> bool:
    """Commits a manifest; returns whether there was one. Raises ``ApiError`` for what is no manifest of what is here."""
    try:
        store.check_name(name)
        document = Document.from_bytes(body, name)
    except StoreError as error:
        raise ApiError(400, str(error), code="manifest_invalid") from error
    if document.name != name:
        raise ApiError(400, f"{name}: is the manifest of {document.name[:200]!r}", code="manifest_invalid")
    try:
        store.trust.checked(document)
    except NotSigned as error:
        raise ApiError(403, str(error), code="not_signed") from error
    with store.writing():
        # Within it, so that what is here now stays until the manifest names it.
        if missing := [one.artifact for one in document.artifacts if not store.holds_whole(one)]:
            count = counted(len(missing), "artifact is", "artifacts are")
            message = f"{name}: {count} not here, {missing[0]} among them; send these first"
            raise ApiError(409, message, code="artifact_not_found")
        with store.changing():
            try:
                there = f'"{digest(store[name].to_bytes())}"'
            except (DocumentMissing, NotSigned):
                # What nobody trusted has signed is not there for anybody.
                there = None
            if there != seen:
                reason = "is another one by now" if there else "is no longer there"
                raise ApiError(412, f"{name}: {reason}", code="manifest_changed")
            store.accept(document)
    return there is not None


async def lookup(request: Request) -> Response:
    body = await parse_body(request, LookupRequest)
    service: Service = request.app.state.service
    if body.model != service.model.name:
        raise model_missing(body.model, service.model.name)
    match = await to_thread.run_sync(_longest_match, request.state.tenant, body.token_ids)
    return JSONResponse(match)


def _longest_match(tenant: Tenant, token_ids: list[int]) -> LookupMatch | None:
    if (match := tenant.prefixes.longest(token_ids)) is None:
        return None
    try:
        document = tenant.store[match.document]
    except DocumentMissing:
        return None
    variants = document.segments[match.segment].variants
    return {
        "document": match.document,
        "segment": match.segment,
        "tokens": match.tokens,
        "variants": {
            name: {"artifact": variant.artifact, "bytes": variant.nbytes}
            for name, variant in variants.items()
        },
        "prefix": _prefix(document),
    }


def _prefix(document: Document) -> str | None:
    return document.prefix_artifact.artifact if document.prefix_artifact else None


ROUTES = [
    Resource(
        "/v1/documents",
        GET=Operation(list_documents, "The documents that are cached", {JSON: DocumentList}, errors=[503]),
    ),
    Resource(
        "/v1/documents/{name:path}",
        GET=Operation(
            get_document,
            "A document's manifest",
            {JSON: dict[str, Any]},
            parameters=[KNOWN],
            statuses=[200, 304],
            errors=[404, 503],
        ),
        PUT=Operation(
            put_document,
            "Stores a document's manifest, once its artifacts are here",
            {JSON: Stored},
            request={JSON: dict[str, Any]},
            parameters=[
                Parameter("If-Match", str, "the ETag of the manifest that is replaced", place="header"),
                Parameter("If-None-Match", str, "*, where there is none yet", place="header"),
            ],
            statuses=[200, 201],
            errors=[403, 409, 412, 428, 507],
        ),
    ),
    Resource(
        "/v1/lookup",
        POST=Operation(
            lookup,
            "The longest cached beginning of a prompt",
            {JSON: LookupMatch | None},
            request={JSON: LookupRequest},
            errors=[404, 503],
        ),
    ),
]
