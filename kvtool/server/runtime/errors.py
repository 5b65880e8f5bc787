"""Errors of kvtool → what a client is shown of them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from kvtool.errors import KvtoolError, UsageError
from kvtool.server.http.errors import ApiError, server_failed
from kvtool.server.runtime.cache_memory import Busy, TooLarge
from kvtool.store.backends.backend import Unreachable
from kvtool.store.base import VariantMissing
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.room.quota import QuotaReached
from kvtool.store.trust.signatures import NotSigned
from kvtool.system.files import DiskFull


def api_error(error: BaseException) -> ApiError:
    """The status and message of ``error``.

    Subject, reason and remedy are shown where they are the client's own business: a request that makes no sense, or that is
    too large. Where only the operator can do something, the message has none of them, since they may name the operator's
    paths.
    """
    match error:
        case ApiError():
            return error
        case DocumentMissing() | NotSigned():
            # What nobody trusted has signed is not there for anybody. The log of the store's keeper says more.
            return document_missing(str(error.subject))
        case VariantMissing():
            message = f"{error.subject}: {error.reason}; name one of these after @, or none"
            return ApiError(404, message, param="documents", code="variant_not_found")
        case Busy():
            return ApiError(503, str(error), code="overloaded", Retry_After="1")
        case Unreachable():
            return ApiError(503, "the store cannot be reached; try again later", Retry_After="5")
        case DiskFull():
            return ApiError(507, "the server's disk is full; what was stored before is safe")
        case QuotaReached():
            message = (
                "the store is full: nothing that it holds may be removed now to make room; try again later"
            )
            return ApiError(507, message, code="quota_exceeded")
        case UsageError() | TooLarge():
            return ApiError(400, str(error))
        case KvtoolError():
            reason = f"the cache cannot be used ({type(error).__name__})"
            return ApiError(500, f"{reason}; the server's log says more")
    return server_failed()


async def respond(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that ended with ``error``, which the request's log line names where it is the server's."""
    shown = api_error(error)
    if shown is not error and shown.status >= 500:
        request.state.log.error = error
    return shown.response()


def document_missing(name: str, remedy: str = "GET /v1/documents lists them") -> ApiError:
    message = f"{name or 'the empty name'}: there is no such document; {remedy}"
    return ApiError(404, message, param="documents", code="document_not_found")


def model_missing(requested: str, served: str) -> ApiError:
    message = f"model {requested!r}: this server has {served!r}"
    return ApiError(404, message, param="model", code="model_not_found")


def read_only(subject: str) -> ApiError:
    return ApiError(403, f"{subject}: this server's store is read only", code="read_only")
