"""Routes that describe themselves, and the OpenAPI 3.1 document that is made from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kvtool.server.http.errors import ErrorBody

JSON = "application/json"
BINARY = "application/octet-stream"
EVENTS = "text/event-stream"

Json = dict[str, Any]
Content = Mapping[str, Any]
"""Media type → the Python type of such a body, as pydantic takes them: a model, a ``TypedDict``, ``bytes``, ``str``."""


@dataclass(frozen=True)
class Parameter:
    """A query parameter or a header; all of them may be left out."""

    name: str
    type: Any
    description: str
    place: str = "query"


@dataclass(frozen=True)
class Operation:
    """One method of a path: its handler, and its description.

    ``handler`` takes the request and gives the response, as a coroutine or in a thread. Its name is the operationId.
    ``response`` is the body of answers with ``statuses``; ``errors`` are statuses beside 400, those of missing tokens, and
    those of a body that arrives too slowly or is too large.
    """

    handler: Callable[[Request], Any]
    summary: str
    response: Content
    request: Content | None = None
    parameters: Sequence[Parameter] = ()
    statuses: Sequence[int] = (200,)
    errors: Sequence[int] = ()


class Resource(Route):
    """A path with one ``Operation`` for each method: ``Resource("/v1/lookup", POST=Operation(…))``.

    Each path is one route, so that the answer 405 names all methods of it. HEAD comes with GET. An open resource needs no
    token.
    """

    def __init__(self, path: str, *, is_open: bool = False, **operations: Operation) -> None:
        self.operations, self.is_open = operations, is_open
        super().__init__(path, self.respond, methods=list(operations), name=path)

    async def respond(self, request: Request) -> Response:
        handler = self.operations["GET" if request.method == "HEAD" else request.method].handler
        if inspect.iscoroutinefunction(handler):
            response: Response = await handler(request)
            return response
        return await run_in_threadpool(handler, request)


def describe(routes: Sequence[BaseRoute]) -> Json:
    """The OpenAPI document of ``routes``."""
    resources = [route for route in routes if isinstance(route, Resource)]
    schemas, components = _schemas(resources)
    security = {"token": {"type": "http", "scheme": "bearer"}}
    paths: dict[str, Json] = {}
    for resource in resources:
        # /a/{name:path} is /a/{name} here: OpenAPI has no kinds of parameters.
        paths[resource.path_format] = {
            method.lower(): _described(resource, operation, schemas)
            for method, operation in resource.operations.items()
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "kvtool serve-cache", "version": "1"},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": security},
        # Which tokens there are depends on how the server was started; without any, none is needed.
        "security": [{"token": []}, {}],
    }


_Schemas = Mapping[tuple[str, JsonSchemaMode], Json]
_ERROR: Content = {JSON: ErrorBody}


def _schemas(resources: Sequence[Resource]) -> tuple[_Schemas, Json]:
    """The schema of each type, by its name and whether it is read or written; and the components that they refer to."""
    types = dict(_types(resources))
    adapters = [(name, mode, TypeAdapter(type_)) for (name, mode), type_ in types.items()]
    schemas, definitions = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    return schemas, definitions.get("$defs", {})


def _types(resources: Sequence[Resource]) -> Iterator[tuple[tuple[str, JsonSchemaMode], Any]]:
    for resource in resources:
        for operation in resource.operations.values():
            for type_ in (operation.request or {}).values():
                yield (repr(type_), "validation"), type_
            for parameter in operation.parameters:
                yield (repr(parameter.type), "validation"), parameter.type
            for type_ in [*operation.response.values(), *_ERROR.values()]:
                yield (repr(type_), "serialization"), type_


def _described(resource: Resource, operation: Operation, schemas: _Schemas) -> Json:
    answered = {
        str(status): _response(status, {} if status == 304 else operation.response, schemas)
        for status in operation.statuses
    }
    refused = {str(status): _response(status, _ERROR, schemas) for status in _errors(resource, operation)}
    described: Json = {
        "operationId": operation.handler.__name__,
        "summary": operation.summary,
        "responses": {**refused, **answered, "default": _response(None, _ERROR, schemas)},
    }
    if operation.request:
        content = _content(operation.request, "validation", schemas)
        described["requestBody"] = {"required": True, "content": content}
    parameters = [_path_parameter(name, kind) for name, kind in resource.param_convertors.items()]
    parameters += [_parameter(parameter, schemas) for parameter in operation.parameters]
    if parameters:
        described["parameters"] = parameters
    if resource.is_open:
        described["security"] = []
    return described


def _errors(resource: Resource, operation: Operation) -> list[int]:
    of_tokens = [] if resource.is_open else [401]
    of_bodies = [408, 413] if operation.request else []
    of_bodies += [415] if JSON in (operation.request or {}) else []
    return sorted({400, 403, *of_tokens, *of_bodies, *operation.errors})


def _response(status: int | None, content: Content, schemas: _Schemas) -> Json:
    described: Json = {"description": "Any other error" if status is None else HTTPStatus(status).phrase}
    if content:
        described["content"] = _content(content, "serialization", schemas)
    return described


def _content(content: Content, mode: JsonSchemaMode, schemas: _Schemas) -> Json:
    return {media: {"schema": schemas[repr(type_), mode]} for media, type_ in content.items()}


def _parameter(parameter: Parameter, schemas: _Schemas) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "schema": schemas[repr(parameter.type), "validation"],
    }


def _path_parameter(name: str, kind: Any) -> Json:
    schema = {"type": "string", "minLength": 0 if isinstance(kind, PathConvertor) else 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}
