"""Errors in the form that OpenAI's clients expect: a status, and a body that names the field."""

from __future__ import annotations

from starlette.responses import JSONResponse
from typing_extensions import TypedDict


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


class ApiError(Exception):
    """An error that a client is shown as it is.

    ``param`` is the request's field, ``code`` one of OpenAI's words or one of that kind. Headers are keywords:
    ``Retry_After="1"``.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def body(self) -> ErrorBody:
        return {
            "error": {
                "message": str(self),
                "type": _type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def server_failed() -> ApiError:
    """The error shown for exceptions that nobody expected, which say nothing of themselves to clients."""
    return ApiError(500, "the server failed; its log says more")


def _type(status: int) -> str:
    if status in (401, 403):
        return "authentication_error" if status == 401 else "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
