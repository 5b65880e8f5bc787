"""What is passed on, to whom, and what is not: paths, cookies, and headers of one connection."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

import httpx
import pytest

from kvtool.errors import UsageError
from kvtool.server.http.cross_site import read_names
from kvtool.server.proxy.app import create_proxy
from kvtool.server.proxy.engine import Engine, without_hop_by_hop
from kvtool.server.proxy.prompts import Prompts
from tests.server.proxy.engine import FakeEngine


def sent(url: str, *lines: str) -> bytes:
    """The answer to a request of these lines, which no client's library has touched."""
    address = urlsplit(url)
    head = [*lines, "Host: localhost", "Connection: close", "", ""]
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall("\r\n".join(head).encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "path", ["%2f@{victim}/echo/", "%2F%2F{victim}/echo/", "%2fx", "@{victim}/echo/", "x"]
)
def test_a_path_decides_nothing_of_whom_it_goes_to(
    proxy: httpx.Client,
    engine: FakeEngine,
    listening: Callable[..., AbstractContextManager[str]],
    path: str,
) -> None:
    victim = FakeEngine()
    with listening(victim.app) as url:
        target = path.format(victim=urlsplit(url).netloc)
        answer = sent(str(proxy.base_url), f"GET {target} HTTP/1.1")
    assert answer.split()[1] in (b"400", b"404")
    assert not victim.requests
    assert not engine.requests


@pytest.mark.parametrize(
    "target", ["/echo/a%2Fb", "/echo/a/../b", "/echo//@c:1/", "/echo/%c3%a9?q=%20/..#", "/echo/a?"]
)
def test_a_path_is_passed_on_to_the_byte(proxy: httpx.Client, engine: FakeEngine, target: str) -> None:
    answer = sent(str(proxy.base_url), f"DELETE {target} HTTP/1.1")
    assert answer.split()[1] == b"200"
    path, _, query = target.partition("?")
    assert engine.requests[0]["raw_path"] == path.encode()
    assert engine.requests[0]["query"].removesuffix("#") == query.removesuffix("#")


def test_an_engine_below_a_path_is_asked_there(
    engine: FakeEngine, prompts: Prompts, listening: Callable[..., AbstractContextManager[str]]
) -> None:
    with (
        listening(engine.app) as url,
        listening(create_proxy(Engine(f"{url}/echo/v1"), prompts)) as proxy,
    ):
        httpx.get(f"{proxy}/v1/models")
    assert engine.requests[0]["raw_path"] == b"/echo/v1/models"


@pytest.mark.parametrize("url", ["http://a/?q", "http://a/#f", "http://u@a", "ftp://a", "http://"])
def test_an_engine_is_named_by_its_address_alone(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a server"):
        Engine(url)


def test_cookies_of_one_client_are_nobody_elses(proxy: httpx.Client, engine: FakeEngine) -> None:
    for n in range(2):
        answer = httpx.get(f"{proxy.base_url}/echo/", headers={"x-cookie": f"session=alice{n}"})
        assert answer.headers["set-cookie"] == f"session=alice{n}"
    httpx.get(f"{proxy.base_url}/echo/", headers={"cookie": "session=bob"})
    cookies = [request["headers"].get("cookie") for request in engine.requests]
    assert cookies == [None, None, "session=bob"]


def test_nothing_is_added_but_an_encoding(proxy: httpx.Client, engine: FakeEngine) -> None:
    sent(str(proxy.base_url), "GET /echo/ HTTP/1.1")
    assert engine.requests[0]["headers"].keys() == {"host", "accept-encoding"}
    assert engine.requests[0]["headers"]["accept-encoding"] == "identity"


def test_headers_of_one_connection_are_dropped_both_ways(proxy: httpx.Client, engine: FakeEngine) -> None:
    answer = sent(
        str(proxy.base_url),
        "GET /echo/ HTTP/1.1",
        "Connection: keep-alive, X-Priv",
        "X-Priv: 1",
        "X-Kept: 1",
        "Proxy-Connection: keep-alive",
        "X-Connection: x-theirs",
    ).lower()
    headers = engine.requests[0]["headers"]
    assert headers["x-kept"] == "1"
    assert not headers.keys() & {"x-priv", "proxy-connection", "connection"}
    assert b"x-engine: yes" in answer
    assert b"x-theirs" not in answer


def test_every_connection_header_counts() -> None:
    headers = [(b"Connection", b"A, b"), (b"connection", b" C ,"), (b"X-A", b"1")]
    assert without_hop_by_hop([*headers, (b"a", b"1"), (b"B", b"2"), (b"c", b"3")]) == [(b"X-A", b"1")]


def test_names_are_checked_wherever_it_listens(
    engine: FakeEngine, prompts: Prompts, listening: Callable[..., AbstractContextManager[str]]
) -> None:
    """Its requests carry no token that a page of another site would lack."""
    names = read_names(["Proxy.example"])
    with (
        listening(engine.app) as url,
        listening(create_proxy(Engine(url), prompts, names), host="0.0.0.0") as proxy,
    ):
        port = urlsplit(proxy).port
        statuses = [
            httpx.get(f"{proxy}/v1/models", headers={"host": f"{host}:{port}"}).status_code
            for host in (
                "proxy.example",
                "PROXY.example",
                "proxy",
                "10.0.0.7",
                "evil.example",
                "a.proxy.example",
            )
        ]
    assert statuses == [200, 200, 200, 200, 403, 403]
    for value in ("http://proxy.example", "proxy.example:80", "*", ""):
        with pytest.raises(UsageError, match="is no host name"):
            read_names([value])
