"""The log: one line for each request, and warnings.

No line holds what people wrote: no document, prompt, answer or token, and no message of an unexpected exception, since these
like to repeat what they were given.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvtool.errors import KvtoolError
from kvtool.server.http.errors import server_failed
from kvtool.server.http.metrics import Metrics

_CLIENT_GONE = 499
_PLACES = 6

TOKEN_COUNTS = ("prompt_tokens", "cached_tokens", "matched_tokens", "stored_tokens", "completion_tokens")
"""Those of the prompt that equal the beginning of a cached document are matched; stored ones are all of that document's."""

_log = logging.getLogger(__name__)


@dataclass
class RequestLog:
    """The fields of a request's line beside its path and status.

    ``tokens`` are counts by name, ``time_to_first_token`` is in seconds, ``error`` is the server's own failure.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    tokens: Mapping[str, int] = field(default_factory=dict)
    time_to_first_token: float | None = None
    error: BaseException | None = None


class Logged:
    """Middleware, the first of all, that counts each request and logs it.

    Gives the request an id, answered as X-Request-Id, and its state a ``log``. Answers 500 to unexpected exceptions.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        log = RequestLog()
        scope.setdefault("state", {})["log"] = log
        status = _CLIENT_GONE
        started = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", log.id.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log.error = error
            if status != _CLIENT_GONE:
                raise
            await server_failed().response()(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            _log.info("", extra={"fields": _fields(scope, log, status, time.monotonic() - started)})


def _fields(scope: Scope, log: RequestLog, status: int, seconds: float) -> dict[str, Any]:
    tenant = scope["state"].get("tenant")
    # The path as it was sent, quoted: decoded, it could hold line ends, and so add lines to the log.
    path = (scope.get("raw_path") or b"").partition(b"?")[0].decode("ascii", "backslashreplace")
    first_token = log.time_to_first_token
    return {
        "request_id": log.id,
        "tenant": tenant.name if tenant else None,
        "method": scope["method"],
        "path": path[:256],
        "status": status,
        "seconds": round(seconds, 4),
        **{name: log.tokens.get(name) for name in TOKEN_COUNTS},
        "time_to_first_token_seconds": None if first_token is None else round(first_token, 4),
        "error": None if log.error is None else describe(log.error),
    }


def describe(error: BaseException) -> str:
    """The error and its place.

    Only kvtool's own messages are known to name files and fields, not what is in them. Of others it is the type, and the
    places in the code.
    """
    if isinstance(error, KvtoolError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [f"{Path(file).name}:{line}" for file, line in frames]
    return f"{type(error).__name__} at {' < '.join(places[: -_PLACES - 1 : -1])}"


def set_up(*, as_json: bool) -> None:
    """Sends the warnings of this process and a line for each request to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(as_json))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _log.setLevel(logging.INFO)


class LineFormatter(logging.Formatter):
    """A record as one line: a JSON object, or NAME=VALUE."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        if fields is None:
            # What follows the first line is a representation of things, asyncio's of exceptions among them.
            fields = {"level": record.levelname.lower(), "message": record.getMessage().partition("\n")[0]}
            error = record.exc_info[1] if record.exc_info else None
            fields["error"] = describe(error) if error else None
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self.as_json:
            return json.dumps({"time": moment, **fields})
        return " ".join([moment, *(f"{name}={value}" for name, value in fields.items() if value is not None)])
