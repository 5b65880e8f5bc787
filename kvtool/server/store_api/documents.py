"""What is cached, of the tenant's own store: the documents, and which of them a prompt begins with."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvtool.digest import digest
from kvtool.errors import KvtoolError
from kvtool.server.http.errors import document_missing, model_missing
from kvtool.server.http.json_body import parsed
from kvtool.server.runtime.tenant import Tenant
from kvtool.server.store_api.artifacts import is_known
from kvtool.store.base import DocumentMissing, Store
from kvtool.store.manifest import Document


class LookupRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: StrictStr
    token_ids: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1)]


def documents(request: Request) -> Response:
    """All that can be read; ``kvtool verify`` says what is wrong with the others."""
    tenant: Tenant = request.state.tenant
    found = []
    for name in tenant.store:
        try:
            found.append(_listed(tenant, tenant.store[name], tenant.store.committed(name)))
        except (KvtoolError, OSError):
            continue
    return JSONResponse({"object": "list", "data": found})


def _listed(tenant: Tenant, document: Document, committed: float) -> dict[str, Any]:
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


def document(request: Request) -> Response:
    """The manifest, to the byte."""
    store: Store = request.state.tenant.store
    name = request.path_params["name"]
    if name not in store:
        raise document_missing(name)
    manifest = store[name].to_bytes()
    headers = {"ETag": f'"{digest(manifest)}"', "Cache-Control": "private, no-cache"}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(manifest, media_type="application/json", headers=headers)


async def lookup(request: Request) -> Response:
    asked = await parsed(request, LookupRequest)
    serving, tenant = request.app.state.serving, request.state.tenant
    if asked.model != serving.model.name:
        raise model_missing(asked.model, serving.model.name)
    return JSONResponse(await to_thread.run_sync(_longest, tenant, asked.token_ids))


def _longest(tenant: Tenant, token_ids: list[int]) -> dict[str, Any] | None:
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
    Route("/v1/documents", documents),
    Route("/v1/documents/{name:path}", document),
    Route("/v1/lookup", lookup, methods=["POST"]),
]
