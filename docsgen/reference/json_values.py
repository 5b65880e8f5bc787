"""What commands print with --json, key by key."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from types import NoneType

from pydantic import BaseModel

from docsgen.markdown import code, docstring, table
from docsgen.markdown import page as whole_page
from kvtool.report.schemas.table import VALUES

INTRO = """What each command prints to stdout with `--json`. `kvtool schema COMMAND` prints the same as JSON Schema, for scripts
that check what they read. Notes, progress and errors go to stderr.

Every key is always there. What was not measured, or does not apply, is `null`. A later version may add keys. Those that are here
keep their meaning, unless the changelog says otherwise."""

NAMES = {"str": "text", "int": "number", "float": "number", "bool": "true or false", "Any": "anything"}


def page() -> str:
    parts: list[str] = []
    shown: set[type[BaseModel]] = set()
    for command, value in VALUES.items():
        parts.append(f"## `kvtool {command}`")
        parts.append(f"Prints {kind(value)}.")
        for one in models(value):
            if one not in shown:
                shown.add(one)
                parts += [f"### {one.__name__}", docstring(one), table(("key", "type", "meaning"), rows(one))]
    return whole_page("JSON of commands", "kvtool/report/schemas/", INTRO, *parts)


def rows(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("``", "`")
        yield code(name), kind(field.annotation), meaning


def models(annotation: object) -> Iterator[type[BaseModel]]:
    """The objects that a value is made of, each before those within it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for part in typing.get_args(annotation):
        yield from models(part)


def kind(annotation: object) -> str:
    """A type as JSON's reader would call it."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(code(one) if isinstance(one, str) else str(one).lower() for one in parts)
    if origin is dict:
        return f"object of {kind(parts[1])}"
    if origin in (list, tuple):
        return f"list of {kind(parts[0])}"
    if parts:
        return " or ".join(unique("null" if part is NoneType else kind(part) for part in parts))
    name = getattr(annotation, "__name__", str(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{name}](#{name.lower()})"
    return NAMES.get(name, name)


def unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
