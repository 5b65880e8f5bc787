"""Who asks: a bearer token names a tenant, whose store is a directory of its own."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kvtool.errors import UsageError
from kvtool.server.http.errors import ApiError, respond
from kvtool.server.runtime.tenant import Tenant
from kvtool.server.web import routes

OPEN = ("/healthz", "/readyz", "/openapi.json", *routes.PATHS)
"""Paths that need no token: they say nothing of anyone."""

METRICS = "metrics"
"""The tenant that may see /metrics, where there are tokens."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TOKEN_CHARACTERS = 16


def read_tokens(path: Path) -> dict[str, str]:
    """Token → tenant, from lines of NAME TOKEN. Raises ``UsageError``, naming the line, for any other."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(path, f"cannot be read ({error})", "expected lines of NAME TOKEN") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.split()
        # The token itself is not repeated: messages end up in logs.
        if len(rest) != 1 or not _NAME.fullmatch(name):
            raise UsageError(f"{path}:{number}", "expected NAME TOKEN, the name of a-z, 0-9, _ and -")
        (token,) = rest
        if len(token) < _TOKEN_CHARACTERS or not token.isascii():
            raise UsageError(
                f"{path}:{number}", f"expected a token of at least {_TOKEN_CHARACTERS} characters"
            )
        if token in found:
            raise UsageError(
                f"{path}:{number}", f"this token is {found[token]}'s already", "give each its own"
            )
        found[token] = name
    if not found:
        raise UsageError(path, "has no token", "expected lines of NAME TOKEN")
    return found


class Authentication:
    """Sets the request's ``state.tenant``. Without ``tokens`` everyone is the tenant ""."""

    def __init__(self, app: ASGIApp, tenants: Mapping[str, Tenant], tokens: Mapping[str, str]) -> None:
        self.app, self.tenants, self.tokens = app, tenants, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        name = self._name(request.headers.get("authorization", "")) if self.tokens else ""
        if name is None:
            error = ApiError(
                401,
                "expected a header Authorization: Bearer TOKEN with a token that this server knows",
                code="invalid_api_key",
                WWW_Authenticate="Bearer",
            )
            await (await respond(request, error))(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = self.tenants[name]
        await self.app(scope, receive, send)

    def _name(self, header: str) -> str | None:
        scheme, _, given = header.partition(" ")
        found = None
        if scheme.lower() == "bearer":
            # All are compared, each in the same time, so that no time tells how near a guess was.
            for token, name in self.tokens.items():
                if hmac.compare_digest(token.encode(), given.strip().encode()):
                    found = name
        return found
