"""Errors as OpenAI's clients expect them: a status, and a body that says which field."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from kvtool.errors import KvtoolError, UsageError
from kvtool.server.runtime.cache_memory import Busy, TooLarge
from kvtool.store.backends.backend import Unreachable
from kvtool.store.base import DocumentMissing
from kvtool.system.files import DiskFull


class ApiError(Exception):
    """``param`` is the request's field, ``code`` one of OpenAI's words."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def body(self) -> dict[str, object]:
        return {
            "error": {
                "message": str(self),
                "type": _type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }


def api_error(error: BaseException) -> ApiError:
    """What a client is told. What only the operator can do something about is not told in detail."""
    match error:
        case ApiError():
            return error
        case DocumentMissing():
            # Where the store lies, which the error says, is nobody's business.
            return document_missing(str(error.subject))
        case Busy():
            return ApiError(503, str(error), code="overloaded", Retry_After="1")
        case Unreachable():
            return ApiError(503, "the store cannot be reached; try again later", Retry_After="5")
        case DiskFull():
            return ApiError(507, "the server's disk is full; what was stored before is safe")
        case UsageError() | TooLarge():
            return ApiError(400, str(error))
        case KvtoolError():
            return ApiError(
                500, f"the cache cannot be used ({type(error).__name__}); the server's log says more"
            )
    return ApiError(500, "the server failed; its log says more")


async def respond(request: Request, error: Exception) -> JSONResponse:
    found = api_error(error)
    if found is not error and found.status >= 500:
        request.state.note.error = error
    return JSONResponse(found.body, found.status, found.headers)


def document_missing(name: str) -> ApiError:
    message = f"{name}: there is no such document; GET /v1/documents lists them"
    return ApiError(404, message, param="documents", code="document_not_found")


def read_only(what: str) -> ApiError:
    return ApiError(403, f"{what}: this server's store is read only", code="read_only")


def model_missing(asked: str, there: str) -> ApiError:
    return ApiError(404, f"model {asked!r}: this server has {there!r}", param="model", code="model_not_found")


def _type(status: int) -> str:
    if status in (401, 403):
        return "authentication_error" if status == 401 else "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
