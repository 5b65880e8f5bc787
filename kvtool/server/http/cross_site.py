"""What pages of other sites may make a browser send here: nothing, unless their origin is allowed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kvtool.errors import UsageError
from kvtool.server.http.errors import ApiError

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*\\]+")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9])?")
_READS = frozenset({"GET", "HEAD"})


def read_origins(values: Sequence[str]) -> tuple[str, ...]:
    """Origins as browsers send them, in lower case. Raises ``UsageError`` for a value that is none."""
    origins = tuple(value.strip().lower().removesuffix("/") for value in values)
    for value, origin in zip(values, origins, strict=True):
        if not _ORIGIN.fullmatch(origin):
            expected = "expected scheme://host or scheme://host:port, such as https://chat.example"
            raise UsageError(f"--allow-origin {value}", "is not the origin of a page", expected)
    return origins


def read_names(values: Sequence[str]) -> tuple[str, ...]:
    """Host names in lower case. Raises ``UsageError`` for a value that is none."""
    for value in values:
        if not _NAME.fullmatch(value.lower()):
            expected = "expected one without scheme and port, such as proxy.example"
            raise UsageError(f"--allow-host {value}", "is no host name", expected)
    return tuple(value.lower() for value in values)


@dataclass(frozen=True)
class Remedies:
    """What the operator can do about a Host that is refused, and about a page of another site."""

    name: str = "start the server with --tokens"
    page: str = "--allow-origin allows one"


class CrossSiteGuard:
    """Middleware that answers 403 to what a page of another site makes a browser send.

    A page can send many requests without asking first (text/plain, forms, images), and the server would do their work even
    though the page cannot read the answers. Browsers say in ``Sec-Fetch-Site``, or else in ``Origin``, where a request comes
    from; other clients send neither and are not asked. The rules are those of Fetch Metadata's isolation policy: links to
    this server may be followed, ``open_paths`` may be read, and pages of ``origins`` may do what the server's own page may.

    With ``names_are_checked``, ``Host`` must be an address or a name that no other site can have: a site can give its own
    name the address of this machine, and its requests are then of the same origin (DNS rebinding). They carry no token, so
    that a server with tokens need not look. ``names`` are those that are allowed beside.
    """

    def __init__(
        self,
        app: ASGIApp,
        origins: Collection[str],
        open_paths: Collection[str],
        names_are_checked: bool,
        remedies: Remedies = Remedies(),
        names: Collection[str] = (),
    ) -> None:
        self.app, self.origins, self.open_paths = app, frozenset(origins), frozenset(open_paths)
        self.names_are_checked, self.remedies = names_are_checked, remedies
        self.names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Request(scope))):
            await refusal.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, request: Request) -> ApiError | None:
        host = request.headers.get("host", "")
        if self.names_are_checked and not self._may_be_asked_as(_host_name(host)):
            reason = "is a name that another site may have given this machine"
            remedy = f"ask by address or as localhost, or {self.remedies.name}"
            return ApiError(403, f"Host {host[:80]!r}: {reason}; {remedy}", code="cross_site")
        if not self._is_cross_site(request, host):
            return None
        if request.method in _READS:
            follows_link = request.headers.get("sec-fetch-mode") == "navigate"
            if request.scope["path"] in self.open_paths or follows_link:
                return None
        origin = request.headers.get("origin", "a page of another site")
        message = f"{origin[:80]}: is another site, whose pages may not use this server"
        return ApiError(403, f"{message}; {self.remedies.page}", code="cross_site")

    def _may_be_asked_as(self, name: str) -> bool:
        return name in self.names or _is_local_name(name)

    def _is_cross_site(self, request: Request, host: str) -> bool:
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        if origin is not None and origin.lower() in self.origins:
            return False
        if site is not None:
            # Another port of this machine is the same site, though not the same origin.
            return site not in ("same-origin", "none")
        # Without the scheme: a proxy before this server may speak TLS.
        return origin is not None and origin.lower().partition("://")[2] != host.lower()


def is_from_page(request: Request) -> bool:
    """Whether a browser sent the request for a page."""
    return "origin" in request.headers or "sec-fetch-site" in request.headers


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_local_name(name: str) -> bool:
    """Whether no other site can have this name: an address, or one without a dot, such as localhost."""
    if "." not in name.removesuffix(".") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
