"""What the server can be asked, as OpenAPI 3.1 has it: from its routes, and from the models that read the bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.convertors import PathConvertor
from starlette.routing import BaseRoute, Route

from kvtool.server.openai.schemas import ChatRequest, CompletionRequest

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """``body`` reads the request; ``answer`` is the JSON schema of what comes back, or another media type's name."""

    summary: str
    body: type[BaseModel] | None = None
    answer: Json | str = "application/json"
    streams: bool = False
    failures: Sequence[int] = ()


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_MODEL = _object(id=_TEXT, object={"const": "model"}, created=_NUMBER, owned_by=_TEXT, context=_NUMBER)
_USAGE = _object(
    prompt_tokens=_NUMBER,
    completion_tokens=_NUMBER,
    total_tokens=_NUMBER,
    prompt_tokens_details=_object(cached_tokens=_NUMBER),
)
_ERROR = _object(
    error=_object(
        message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code={"type": ["string", "null"]}
    )
)
_STATUS = _object(status=_TEXT)


def _answer(kind: str, **said: Json) -> Json:
    choice = _object(index=_NUMBER, finish_reason=_TEXT, **said)
    return _object(
        id=_TEXT, object={"const": kind}, created=_NUMBER, model=_TEXT, choices=_list(choice), usage=_USAGE
    )


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("/healthz", "GET"): Operation("Whether the process answers", answer=_STATUS),
    ("/readyz", "GET"): Operation("Whether it should be sent requests", answer=_STATUS),
    ("/metrics", "GET"): Operation("What is counted, in Prometheus' words", answer="text/plain"),
    ("/openapi.json", "GET"): Operation("This description", answer={"type": "object"}),
    ("/v1/models", "GET"): Operation(
        "The model", answer=_object(object={"const": "list"}, data=_list(_MODEL))
    ),
    ("/v1/models/{name}", "GET"): Operation("The model, by name", answer=_MODEL, failures=[404]),
    ("/v1/completions", "POST"): Operation(
        "Goes on with a text",
        CompletionRequest,
        _answer("text_completion", text=_TEXT),
        streams=True,
        failures=[404, 408, 413, 429, 503],
    ),
    ("/v1/chat/completions", "POST"): Operation(
        "Answers a conversation",
        ChatRequest,
        _answer("chat.completion", message=_object(role={"const": "assistant"}, content=_TEXT)),
        streams=True,
        failures=[404, 408, 413, 429, 503],
    ),
    ("/v1/artifacts/{digest}", "GET"): Operation(
        "An artifact's file", answer="application/octet-stream", failures=[404]
    ),
    ("/v1/calibrations/{digest}", "GET"): Operation(
        "A calibration's file", answer="application/octet-stream", failures=[404]
    ),
}
"""What is known of paths beyond that they are there."""

_WORDS = {
    400: "The request is not what it should be",
    401: "No token, or none that is known",
    403: "Not for this tenant",
    404: "There is no such thing",
    408: "The request did not arrive in time",
    413: "The body is too large",
    429: "Too many requests are being answered",
    503: "Not now",
}


def describe(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The whole description, as JSON."""
    bodies = [operation.body for operation in OPERATIONS.values() if operation.body]
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema:
            # /a/{name:path} is /a/{name} here: OpenAPI has no kinds of parameters.
            path = route.path_format
            for method in sorted((route.methods or set()) - {"HEAD"}):
                operation = OPERATIONS.get((path, method), Operation(f"{method} {path}"))
                paths.setdefault(path, {})[method.lower()] = _described(route, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kvtool serve-cache", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # Which tokens there are depends on how the server was started; without any, none is needed.
        "security": [{"token": []}, {}],
    }


def _described(route: Route, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": "Done", "content": _content(operation)}},
    }
    for status in [400, 401, 403, *operation.failures]:
        described["responses"][str(status)] = _failure(_WORDS[status])
    if operation.answer is _STATUS:
        described["responses"]["503"] = {"description": _WORDS[503], "content": _content(operation)}
    described["responses"]["default"] = _failure("Anything else that went wrong")
    if operation.body:
        schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if names := route.param_convertors:
        described["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 0 if isinstance(kind, PathConvertor) else 1},
            }
            for name, kind in names.items()
        ]
    return described


def _content(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        return {operation.answer: {}}
    content: dict[str, Any] = {"application/json": {"schema": operation.answer}}
    if operation.streams:
        content["text/event-stream"] = {}
    return content


def _failure(what: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": what, "content": {"application/json": {"schema": schema}}}
