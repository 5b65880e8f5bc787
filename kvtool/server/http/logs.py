"""One line for each request, and what else is to be said. What people wrote is in none of them: no document, prompt,
answer or token, and no message of an exception that nobody expected, since these like to repeat what they were given."""

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

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvtool.errors import KvtoolError
from kvtool.server.http.errors import respond
from kvtool.server.http.metrics import Metrics

_GONE = 499
_PLACES = 6
_log = logging.getLogger(__name__)


@dataclass
class Note:
    """What is told of a request beside its path and status. ``tokens`` are counts, ``first_token`` is in seconds."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    tokens: Mapping[str, int] = field(default_factory=dict)
    first_token: float | None = None
    error: BaseException | None = None


class Logged:
    """Stands before everything else: gives each request an id, answered as X-Request-Id, and its state a ``note``; counts
    and logs it; and answers 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note = Note()
        scope.setdefault("state", {})["note"] = note
        status = _GONE
        started = time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (b"x-request-id", note.id.encode())
                message = {**message, "headers": [*message.get("headers", ()), named]}
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            note.error = error
            if status != _GONE:
                raise
            await (await respond(Request(scope), error))(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            _log.info("", extra={"fields": _fields(scope, note, status, time.monotonic() - started)})


def _fields(scope: Scope, note: Note, status: int, seconds: float) -> dict[str, Any]:
    tenant = scope["state"].get("tenant")
    # As it was sent, quoted: decoded, a path could hold line ends, and with them lines of its own.
    path = (scope.get("raw_path") or b"").partition(b"?")[0].decode("ascii", "backslashreplace")
    return {
        "request_id": note.id,
        "tenant": tenant.name if tenant else None,
        "method": scope["method"],
        "path": path[:256],
        "status": status,
        "seconds": round(seconds, 4),
        **{name: note.tokens.get(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
        "first_token_seconds": None if note.first_token is None else round(note.first_token, 4),
        "error": None if note.error is None else describe(note.error),
    }


def describe(error: BaseException) -> str:
    """What went wrong and where. Only kvtool's own messages are known to name files and fields, not what is in them."""
    if isinstance(error, KvtoolError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    lines = [line for _, line in traceback.walk_tb(error.__traceback__)]
    places = [f"{Path(code.co_filename).name}:{line}" for code, line in zip(frames, lines, strict=True)]
    return f"{type(error).__name__} at {' < '.join(places[: -_PLACES - 1 : -1])}"


def set_up(*, as_json: bool) -> None:
    """Sends what this process logs to stderr, warnings and all requests, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(as_json))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _log.setLevel(logging.INFO)


class _Line(logging.Formatter):
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
