"""The engine after the proxy, as an HTTP client sees it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import httpx2

from kvtool import limits
from kvtool.errors import UsageError
from kvtool.server.http.errors import ApiError

CONNECT_SECONDS = 5.0

_TIMEOUT = httpx2.Timeout(None, connect=CONNECT_SECONDS)
"""An answer may take long to begin."""

_log = logging.getLogger(__name__)

_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer"),
        *("proxy-authenticate", "proxy-authorization"),
        *("transfer-encoding", "upgrade", "host", "content-length", "expect", "date", "server"),
    }
)
"""Headers of one connection, and those that each side of the proxy sets itself."""


class Engine:
    """The engine at ``url``. ``send`` gives its answer as it comes; ``close`` ends all connections."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self._base = httpx2.URL(self.url)
        bounds = httpx2.Limits(max_connections=limits.CONNECTIONS, max_keepalive_connections=64)
        # No client: it would keep cookies, and give those of one client to all others. Addresses of proxies in the environment
        # are for other servers than this one.
        self._transport = httpx2.AsyncHTTPTransport(limits=bounds, trust_env=False)

    async def send(
        self, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]] = (), **content: Any
    ) -> httpx2.Response:
        """Sends a request; the caller closes the answer.

        ``target`` is path and query, sent as they are: they decide nothing of whom the request goes to. Raises ``ApiError`` for
        what cannot be sent, and if there is no answer.
        """
        if not target.startswith(b"/"):
            raise ApiError(400, "the request's path: expected one that begins with /")
        passed = without_hop_by_hop(headers)
        if not any(name.lower() == b"accept-encoding" for name, _ in passed):
            # By default it would be one that the client may not know.
            passed.append((b"accept-encoding", b"identity"))
        extensions = {"timeout": _TIMEOUT.as_dict(), "target": self._base.raw_path.rstrip(b"/") + target}
        request = httpx2.Request(method, self._base, headers=passed, extensions=extensions, **content)
        try:
            return await self._transport.handle_async_request(request)
        except httpx2.LocalProtocolError as error:
            raise ApiError(400, "the request: its path or its headers cannot be passed on") from error
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    async def whole(self, answer: httpx2.Response) -> bytes:
        """The body of an answer. Raises ``ApiError`` for one that breaks off or is too large."""
        body = bytearray()
        async for chunk in self.chunks(answer):
            body += chunk
            if len(body) > limits.ENGINE_BYTES:
                raise ApiError(502, f"the engine's answer is larger than {limits.ENGINE_BYTES:,} bytes")
        return bytes(body)

    async def chunks(self, answer: httpx2.Response) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ``ApiError`` if it breaks off."""
        try:
            async for chunk in answer.aiter_raw():
                yield chunk
        except httpx2.TransportError as error:
            _log.warning("the engine at %s broke off an answer: %s", self.url, type(error).__name__)
            raise ApiError(
                502, "the engine broke off its answer; its log may say why", code="engine_failed"
            ) from error

    async def close(self) -> None:
        await self._transport.aclose()

    def _unreachable(self, error: Exception) -> ApiError:
        _log.warning("the engine at %s cannot be reached: %s", self.url, error or type(error).__name__)
        message = "the engine cannot be reached; start it, or name its address with --engine, and try again"
        return ApiError(502, message, code="engine_unreachable", Retry_After="5")


def without_hop_by_hop(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """``headers`` without those of one connection: the known ones, and those that ``Connection`` names."""
    named = [(name.decode("latin-1").lower(), (name, value)) for name, value in headers]
    listed = ",".join(value.decode("latin-1") for name, (_, value) in named if name == "connection")
    dropped = _HOP_BY_HOP | {token.strip().lower() for token in listed.split(",")}
    return [header for name, header in named if name not in dropped]


def authorization(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The header by which the engine knows the client, which is the engine's to check."""
    value = headers.get("authorization")
    return [] if value is None else [(b"authorization", value.encode("latin-1"))]


def _checked(url: str) -> str:
    """Without a slash at its end, and without the /v1 of the address that OpenAI's clients are given."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or _has_more(parsed):
        raise UsageError(
            "--engine", "is no address of a server", "expected one such as http://localhost:8000"
        )
    return url.rstrip("/").removesuffix("/v1")


def _has_more(url: httpx2.URL) -> bool:
    return bool(url.userinfo or url.query or url.fragment)
