"""The documents of the tenant's own store, and which of them a prompt begins with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from kvtool.digest import digest
from kvtool.errors import KvtoolError
from kvtool.server.http.json_body import parse_body
from kvtool.server.http.openapi import JSON, Operation, Resource
from kvtool.server.runtime.errors import document_missing, model_missing
from kvtool.server.runtime.service import Service
from kvtool.server.runtime.tenant import Tenant
from kvtool.server.store_api.artifacts import KNOWN, is_known
from kvtool.store.base import Store
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.manifest import Document


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
