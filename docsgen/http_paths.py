"""The server's paths, from its OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from docsgen.markdown import code, table
from docsgen.markdown import page as whole_page
from kvtool.server.app import create_app
from kvtool.server.http.metrics import Metrics
from kvtool.server.http.openapi import describe

INTRO = """What `kvtool serve-cache` answers. A running server has the same as OpenAPI 3.1 at `/openapi.json`.

Where the server was started with `--tokens`, a request carries one: `Authorization: Bearer TOKEN`. A request that fails gets an
[error](#error)."""

Json = Mapping[str, Any]
METHODS = ("get", "put", "post", "patch", "delete")


def document() -> Json:
    """The description of an application that serves no model: paths and bodies do not depend on one."""
    application = create_app(SimpleNamespace(tenants={}, metrics=Metrics()))
    return describe(application.routes)


def page() -> str:
    described = document()
    everywhere = in_every_operation(described["paths"])
    return whole_page(
        "HTTP paths",
        "kvtool/server/http/openapi.py",
        INTRO,
        "These answers are possible everywhere:",
        "\n".join(f"- {fact}" for fact in everywhere),
        *(
            block
            for path, operations in described["paths"].items()
            for block in of_path(path, operations, everywhere)
        ),
        "# Bodies",
        *(
            block
            for name, schema in described["components"]["schemas"].items()
            for block in of_schema(name, schema)
        ),
    )


def in_every_operation(paths: Json) -> list[str]:
    """The answers that all operations have in common, said once."""
    each = [list(answers(operation)) for operations in paths.values() for operation in operations.values()]
    return [fact for fact in each[0] if all(fact in facts for facts in each)]


def of_path(path: str, operations: Json, known: Sequence[str]) -> Iterator[str]:
    for method in METHODS:
        if operation := operations.get(method):
            yield f"## {method.upper()} {path}"
            if operation["summary"] != f"{method.upper()} {path}":
                yield f"{operation['summary']}."
            facts = [*requests(operation), *answers(operation)]
            yield "\n".join(f"- {fact}" for fact in facts if fact not in known)


def requests(operation: Json) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        where = {"path": "in the path", "query": "in the query", "header": "a header"}[parameter["in"]]
        yield f"`{parameter['name']}`, {where}: {kind(parameter['schema'])}"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body, `{media}`" + (f": {kind(content['schema'])}" if "schema" in content else "")


def answers(operation: Json) -> Iterator[str]:
    for status, response in operation["responses"].items():
        if status == "default":
            continue
        media = ", ".join(map(code, response.get("content", {}))) if status.startswith("2") else ""
        yield f"{status}: {response['description'].lower()}" + (f", {media}" if media else "")


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
    yield f"## {name}"
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
        "minLength": "{} characters at least",
        "maxLength": "{} characters at most",
    }
    said = [text.format(schema[key]) for key, text in words.items() if schema.get(key)]
    return f" ({', '.join(said)})" if said else ""


def shown(value: object) -> str:
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, list)
        else "[]"
    )
