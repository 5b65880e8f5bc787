"""The engine behind the proxy, as an HTTP client sees it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import httpx2

from kvtool import limits
from kvtool.errors import UsageError
from kvtool.server.http.errors import ApiError

CONNECT_SECONDS = 5.0

_log = logging.getLogger(__name__)

_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "expect", "date", "server"),
    }
)
"""Headers of one connection, and those that each side of the proxy sets itself."""


class Engine:
    """The engine at ``url``. ``send`` gives its answer as it comes; ``close`` ends all connections."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        # An answer may take long to begin. Addresses of proxies in the environment are for other servers than this one.
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
        bounds = httpx2.Limits(max_connections=limits.CONNECTIONS, max_keepalive_connections=64)
        self._client = httpx2.AsyncClient(timeout=timeout, limits=bounds, trust_env=False)

    async def send(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]] = (), **content: Any
    ) -> httpx2.Response:
        """Sends a request, ``path`` with its query; the caller closes the answer. Raises ``ApiError`` if there is none."""
        passed = without_hop_by_hop(headers)
        if not any(name.lower() == b"accept-encoding" for name, _ in passed):
            # By default it would be one that the client may not know.
            passed.append((b"accept-encoding", b"identity"))
        request = self._client.build_request(method, self.url + path, headers=passed, **content)
        try:
            return await self._client.send(request, stream=True)
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
        await self._client.aclose()

    def _unreachable(self, error: Exception) -> ApiError:
        _log.warning("the engine at %s cannot be reached: %s", self.url, error or type(error).__name__)
        message = "the engine cannot be reached; start it, or name its address with --engine, and try again"
        return ApiError(502, message, code="engine_unreachable", Retry_After="5")


def without_hop_by_hop(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.decode("latin-1").lower() not in _HOP_BY_HOP]


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
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query:
        raise UsageError(
            "--engine", "is no address of a server", "expected one such as http://localhost:8000"
        )
    return url.rstrip("/").removesuffix("/v1")
