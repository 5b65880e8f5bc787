"""Bearer tokens, each of which names a tenant."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kvtool.errors import UsageError
from kvtool.server.http.errors import ApiError
from kvtool.units import parse_quota

METRICS = "metrics"
"""The tenant that may see /metrics, where there are tokens."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TOKEN_CHARACTERS = 16


@dataclass
class Tokens:
    """The tenants' names by token, and the quotas in bytes of those that have one by name."""

    tenants: dict[str, str] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)


def read_tokens(path: Path) -> Tokens:
    """Reads lines of NAME TOKEN, or NAME TOKEN QUOTA. Raises ``UsageError``, naming the line, for any other."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(path, f"cannot be read ({error})", "expected lines of NAME TOKEN") from error
    tokens = Tokens()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        place, (name, *rest) = f"{path}:{number}", line.split()
        # The token itself is not repeated: messages end up in logs.
        if len(rest) not in (1, 2) or not _NAME.fullmatch(name):
            raise UsageError(place, "expected NAME TOKEN, or NAME TOKEN QUOTA, the name of a-z, 0-9, _ and -")
        token, *quota = rest
        if len(token) < _TOKEN_CHARACTERS or not token.isascii():
            raise UsageError(place, f"expected a token of at least {_TOKEN_CHARACTERS} characters")
        if token in tokens.tenants:
            raise UsageError(place, f"this token is {tokens.tenants[token]}'s already", "give each its own")
        tokens.tenants[token] = name
        for size in quota:
            try:
                nbytes = parse_quota(size, "quota")
            except UsageError:
                # The word may be a token.
                remedy = "expected one such as 20GB, or NAME TOKEN alone"
                raise UsageError(place, "its third word is no quota", remedy) from None
            if tokens.quotas.setdefault(name, nbytes) != nbytes:
                raise UsageError(place, f"{name} has another quota above", "give one quota for each name")
    if not tokens.tenants:
        raise UsageError(path, "has no token", "expected lines of NAME TOKEN")
    return tokens


class Authentication:
    """Middleware that sets ``state.tenant`` of each request, or answers 401.

    ``tenants`` has what is each tenant's by name, ``tokens`` the name by token. Without tokens everyone is the tenant "".
    ``open_paths`` need no token and get no tenant: they say nothing of anyone.
    """

    def __init__(
        self,
        app: ASGIApp,
        tenants: Mapping[str, object],
        tokens: Mapping[str, str],
        open_paths: Collection[str],
    ) -> None:
        self.app, self.tenants, self.tokens, self.open_paths = app, tenants, tokens, frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        name = self._name(Request(scope).headers.get("authorization", "")) if self.tokens else ""
        if name is None:
            message = "expected a header Authorization: Bearer TOKEN with a token that this server knows"
            error = ApiError(401, message, code="invalid_api_key", WWW_Authenticate="Bearer")
            await error.response()(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = self.tenants[name]
        await self.app(scope, receive, send)

    def _name(self, header: str) -> str | None:
        scheme, _, guess = header.partition(" ")
        tenant = None
        if scheme.lower() == "bearer":
            # All tokens are compared, each in the same time, so that no time says how near a guess was.
            for token, name in self.tokens.items():
                if hmac.compare_digest(token.encode(), guess.strip().encode()):
                    tenant = name
        return tenant
