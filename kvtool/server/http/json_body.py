"""A request's body, as one of the models of what clients send."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from kvtool.server.http.errors import ApiError

_TELLABLE = 1000

R = TypeVar("R", bound=BaseModel)


async def parsed(request: Request, kind: type[R]) -> R:
    """The body. Raises ``ApiError``, naming the field, for one that is not a ``kind``."""
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        # Each of them is an object: a body of a million wrong items would take gigabytes.
        if error.error_count() > _TELLABLE:
            raise ApiError(400, "almost nothing in this body is what it should be") from None
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper()) or None
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        # Not from it: pydantic's message repeats what was sent.
        raise ApiError(400, message, param=where) from None
    except ClientDisconnect:
        raise ApiError(400, "the request's body did not arrive") from None
