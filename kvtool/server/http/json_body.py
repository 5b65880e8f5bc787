"""A request's body → a pydantic model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from kvtool.server.http.cross_site import is_from_page
from kvtool.server.http.errors import ApiError

_MAX_MISTAKES = 1000
"""Mistakes in one body that are looked at."""

Body = TypeVar("Body", bound=BaseModel)


async def parse_body(request: Request, schema: type[Body]) -> Body:
    """Parses the body. Raises ``ApiError``, naming the field, for one that does not fit ``schema``.

    A page must say that it sends JSON, for which its browser asks first. curl sends it as a form unless told otherwise.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if is_from_page(request) and kind != "application/json":
        raise ApiError(415, f"Content-Type {kind[:80]!r}: expected application/json")
    try:
        return schema.model_validate_json(await request.body())
    except ValidationError as error:
        # Each of them is an object: a body of a million wrong items would take gigabytes.
        if error.error_count() > _MAX_MISTAKES:
            raise ApiError(400, "almost nothing in this body is what it should be") from None
        field, reason = _mistake(error.errors(include_url=False, include_input=False))
        message = f"{field}: {reason}" if field else reason
        # Not from it: pydantic's message repeats what was sent.
        raise ApiError(400, message, param=field) from None
    except ClientDisconnect:
        raise ApiError(400, "the request's body did not arrive") from None


_KINDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""What pydantic expected, by the type of its error."""


def _mistake(errors: Sequence[ErrorDetails]) -> tuple[str | None, str]:
    """The field of the first mistake, and what is wrong with it.

    A field that may be of several kinds has the mistakes of each. Shown is that of the kind that was sent.
    """
    first = errors[0]
    at = next((n for n, part in enumerate(first["loc"]) if _is_kind(part)), None)
    if at is None:
        return _field(first), first["msg"]
    same = [error for error in errors if error["loc"][:at] == first["loc"][:at] and len(error["loc"]) > at]
    other_kinds = {
        error["loc"][at]: _KINDS[error["type"]]
        for error in same
        if len(error["loc"]) == at + 1 and error["type"] in _KINDS
    }
    for error in same:
        if error["loc"][at] not in other_kinds:
            return _field(error), error["msg"]
    return _field(first), f"expected {' or '.join(dict.fromkeys(other_kinds.values()))}"


def _field(error: ErrorDetails) -> str | None:
    *parents, last = error["loc"] or ("",)
    # An unknown field may be called like a kind.
    is_shown = error["type"] == "extra_forbidden" or not _is_kind(last)
    parts = [part for part in parents if not _is_kind(part)] + [last] * is_shown
    return ".".join(str(part)[:80] for part in parts) or None


def _is_kind(part: int | str) -> bool:
    """Whether a part of a place is no field but one of the kinds that a field may be of: str, list[TextPart]."""
    if isinstance(part, int):
        return False
    return not part.isidentifier() or part[:1].isupper() or part in _SIMPLE


_SIMPLE = frozenset({"str", "int", "float", "bool", "none"})
