"""Raw bytes at a real server process: what is slow, large, malformed or silent; and others are answered meanwhile."""

from __future__ import annotations

import json
import resource
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.slow

BODY = b'{"model": "served", "prompt": "One two", "max_tokens": 2, "temperature": 0}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
COMPLETION = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
PATIENCE = """
import sys
from kvtool import limits
limits.HEAD_SECONDS = limits.REQUEST_SECONDS = {seconds}
limits.CONNECTIONS = {connections}
from kvtool.cli import main
sys.argv[0] = "kvtool"
main()
"""


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def parsed(answer: bytes) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def is_answered(url: str) -> bool:
    request = urllib.request.Request(f"{url}/v1/completions", BODY)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return bool(json.load(answer)["choices"])


@pytest.fixture(scope="module")
def hurried(starting: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose patience is two seconds, and which takes 256 connections."""
    store = str(tmp_path_factory.mktemp("empty"))
    with starting("--store", store, code=PATIENCE.format(seconds=2, connections=256)) as server:
        yield server


@pytest.fixture(scope="module")
def patient(starting: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server as it is, over no document."""
    with starting("--store", str(tmp_path_factory.mktemp("empty"))) as server:
        yield server


def test_one_byte_now_and_then(hurried: Any) -> None:
    for sent, what in ((COMPLETION[:60], "headers"), (COMPLETION[:-40], "request")):
        with connected(hurried.url) as connection:
            started = time.monotonic()
            connection.sendall(sent[:-20])
            for byte in sent[-20:]:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.25)
            status, body = parsed(everything(connection))
            assert status == 408
            assert what in body["error"]["message"]
            assert time.monotonic() - started < 8
    assert is_answered(hurried.url)


def test_ten_thousand_silent_connections(patient: Any) -> None:
    """More than have a place, as far as files may be open here; half of them begin a request, and never end it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(hard, 10_200) if hard != resource.RLIM_INFINITY else 10_200
    where = urlsplit(patient.url)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for number in range(files - 200):
            connection = stack.enter_context(socket.create_connection((where.hostname, where.port), 20))
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\n")
            if number % 500 == 499:
                started = time.monotonic()
                assert is_answered(patient.url)
                assert time.monotonic() - started < 10


def test_who_says_nothing_is_left(hurried: Any) -> None:
    with connected(hurried.url) as connection:
        assert everything(connection) == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (1 << 20), 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1000 + b"Connection: close\r\n\r\n", 431),
        (b"GET /" + b"y" * (1 << 20) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 99999999999999999999\r\nConnection: close\r\n\r\n{", 413),
        (HEAD + b"Content-Length: 5\r\nConnection: close\r\n\r\n" + BODY, 400),
        (HEAD + b"Content-Length: 20000000\r\nConnection: close\r\n\r\n" + b" " * 20_000_000, 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc\r\n0\r\n\r\nand so on", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffffff\r\n", 400),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/models/%00%0a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
        (
            b"GET /v1/models HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
            200,
        ),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_what_is_malformed(patient: Any, sent: bytes, status: int) -> None:
    with connected(patient.url) as connection:
        try:
            connection.sendall(sent)
            received, body = parsed(everything(connection))
        except (BrokenPipeError, ConnectionResetError):
            # It was refused before it was all there.
            received, body = parsed(everything(connection))
    assert received == status
    assert received < 400 or body["error"]["message"]
    assert is_answered(patient.url)


def test_pipelining(patient: Any) -> None:
    with connected(patient.url) as connection:
        connection.sendall(COMPLETION * 3 + HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
        answers = everything(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"HTTP/1.1 400 Bad Request") == 1


def test_http_1_0(patient: Any) -> None:
    with connected(patient.url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        status, body = parsed(everything(connection))
    assert status == 200
    assert body["data"][0]["id"] == "served"


@pytest.mark.parametrize("cut", [30, len(HEAD) + 10, len(COMPLETION) - 10, len(COMPLETION)])
def test_who_leaves_in_the_middle(patient: Any, cut: int) -> None:
    for _ in range(20):
        with connected(patient.url) as connection:
            connection.sendall(COMPLETION[:cut])
    assert is_answered(patient.url)
    assert not [line for line in patient.log if "error" in line.lower()]
