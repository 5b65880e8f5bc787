"""A request's body → a pydantic model."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
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
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper()) or None
        message = f"{field}: {first['msg']}" if field else str(first["msg"])
        # Not from it: pydantic's message repeats what was sent.
        raise ApiError(400, message, param=field) from None
    except ClientDisconnect:
        raise ApiError(400, "the request's body did not arrive") from None
