"""/v1/models: the one model that is served."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from kvtool.server.http.errors import ApiError
from kvtool.server.http.openapi import JSON, Operation, Resource
from kvtool.server.runtime.errors import model_missing
from kvtool.server.runtime.service import Service


class ModelEntry(TypedDict):
    """A model. ``max_model_len`` is its context in tokens, as vLLM has it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelEntry]


async def list_models(request: Request) -> Response:
    body: ModelList = {"object": "list", "data": [_entry(request.app.state.service)]}
    return JSONResponse(body)


async def retrieve_model(request: Request) -> Response:
    service: Service = request.app.state.service
    if not (name := request.path_params["name"]):
        message = f"{request.url.path}: a model's name is missing at its end; this server has {service.model.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    if name != service.model.name:
        raise model_missing(name, service.model.name)
    return JSONResponse(_entry(service))


def _entry(service: Service) -> ModelEntry:
    return {
        "id": service.model.name,
        "object": "model",
        "created": service.started,
        "owned_by": "kvtool",
        "max_model_len": service.model.context,
    }


ROUTES = [
    Resource("/v1/models", GET=Operation(list_models, "The model that is served", {JSON: ModelList})),
    Resource(
        "/v1/models/{name:path}",
        GET=Operation(retrieve_model, "The model, by name", {JSON: ModelEntry}, errors=[404]),
    ),
]
