"""The server's paths, from its OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from docsgen.markdown import code, table
from docsgen.markdown import page as whole_page
from kvtool.server.app import create_app
from kvtool.server.http.metrics import Metrics
from kvtool.server.http.openapi import describe

INTRO = """What `kvtool serve-cache` answers. A running server has the same as OpenAPI 3.1 at `/openapi.json`.

Where the server was started with `--tokens`, a request carries one: `Authorization: Bearer TOKEN`. [Bodies](#bodies)
come after the paths."""

Json = Mapping[str, Any]
METHODS = ("get", "put", "post", "patch", "delete")


def document() -> Json:
    """The description of an application that serves no model: paths and bodies do not depend on one."""
    application = create_app(SimpleNamespace(tenants={}, metrics=Metrics()))
    return describe(application.routes)


def page() -> str:
    described = document()
    operations = [
        (f"{method.upper()} {path}", path_item[method])
        for path, path_item in described["paths"].items()
        for method in METHODS
        if method in path_item
    ]
    schemas = described["components"]["schemas"]
    return whole_page(
        "HTTP paths",
        "kvtool/server/http/openapi.py",
        INTRO,
        "## Failures",
        *failures([operation for _, operation in operations]),
        *(block for title, operation in operations for block in of_operation(title, operation)),
        "## Bodies",
        *(block for name, schema in schemas.items() for block in of_schema(name, schema)),
    )


def failures(operations: Sequence[Json]) -> Iterator[str]:
    """What each status means, said once, and the body that comes with it."""
    said: dict[str, str] = {}
    for operation in operations:
        for status, response in operation["responses"].items():
            if is_failure(status):
                said.setdefault(status, response["description"].lower())
    body = operations[0]["responses"]["default"]["content"]["application/json"]["schema"]
    yield f"A request that fails gets {kind(body)}, with one of these statuses:"
    yield table(("status", "meaning"), sorted(said.items()))


def is_failure(status: str) -> bool:
    return status.isdigit() and int(status) >= 400


def of_operation(title: str, operation: Json) -> Iterator[str]:
    yield f"## {title}"
    if operation["summary"] != title:
        yield f"{operation['summary'].removesuffix('.')}."
    yield "\n".join(f"- {fact}" for fact in facts(operation))


def facts(operation: Json) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        where = {"path": "in the path", "query": "in the query", "header": "a header"}[parameter["in"]]
        yield f"`{parameter['name']}`, {where}: {kind(parameter['schema'])}"
    if "requestBody" in operation:
        yield f"Body: {bodies(operation['requestBody'])}"
    responses = operation["responses"]
    for status, response in sorted(responses.items()):
        if status.isdigit() and not is_failure(status):
            yield f"{status}: {bodies(response) or response['description'].lower()}"
    if failing := sorted(filter(is_failure, responses)):
        yield f"Fails with {', '.join(failing)}"


def bodies(response: Json) -> str:
    """Each media type with what it holds."""
    each = [
        f"{kind(content['schema'])} as {code(media)}" if "schema" in content else code(media)
        for media, content in response.get("content", {}).items()
    ]
    return ", or ".join(each)


def of_schema(name: str, schema: Json) -> Iterator[str]:
    required = schema.get("required", ())
    rows = [
        (
            code(field),
            kind(about),
            "required" if field in required else code(shown(about["default"])) if "default" in about else "–",
            about.get("description", ""),
        )
        for field, about in schema.get("properties", {}).items()
    ]
    yield f"### {name}"
    yield schema.get("description", "").replace("``", "`")
    yield table(("field", "type", "default", "meaning"), rows)


def kind(schema: Json) -> str:
    """A schema in a few words."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(kind(option) for option in options)
    if "const" in schema:
        return code(shown(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(shown(value)) for value in schema["enum"])
    match schema.get("type", "anything"):
        case "array":
            return f"list of {kind(schema.get('items', {}))}"
        case list() as names:
            return " or ".join(names)
        case name:
            return f"{name}{bounds(schema)}"


def bounds(schema: Json) -> str:
    """What a number or a length must keep to."""
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
        "minLength": "length at least {}",
        "maxLength": "length at most {}",
    }
    written = {key: value for key, value in schema.items() if (key, value) != ("minLength", 0)}
    phrases = [text.format(written[key]) for key, text in words.items() if key in written]
    return f" ({', '.join(phrases)})" if phrases else ""


def shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
