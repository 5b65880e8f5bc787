"""Servers that are none of kvtool's, over a real socket: whatever they say, it is refused or said to be odd."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool import Store
from kvtool.errors import StoreError, UsageError
from kvtool.store.manifest import Document
from kvtool.store.remote import RemoteStore
from kvtool.store.transfer.pull import pull

pytestmark = pytest.mark.usefixtures("cache")


@contextmanager
def answering(body: bytes, status: int = 200, **headers: str) -> Iterator[str]:
    """A server that is none of ours, and says the same to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def named(document: Document, name: str) -> bytes:
    return Document(**{**document.__dict__, "name": name}).to_bytes()


def test_a_manifest_of_another_name_is_refused(store: Store) -> None:
    with (
        answering(named(store["docs/a.md"], "docs/b.md")) as url,
        pytest.raises(StoreError, match="sent the"),
    ):
        kvtool.Store(url)["docs/a.md"]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"data":[{"name":3}]}', b'{"data":3}', b"[" * 9999]
)
def test_what_is_no_list_is_said_so(body: bytes) -> None:
    with (
        answering(body) as url,
        pytest.raises(StoreError, match=r"/v1/documents: is no list .*is it a kvtool"),
    ):
        list(kvtool.Store(url))


def test_names_lead_nowhere(store: Store, tmp_path: Path) -> None:
    listed = json.dumps({"data": [{"name": "../../x"}, {"name": "/etc/passwd"}]}).encode()
    with answering(listed) as url:
        report = pull(kvtool.Store(url), Store(tmp_path / "mine"))
    assert [str(error) for error in report.problems if "is not a document name" in str(error)] != []
    assert len(report.problems) == 2
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (302, {"Location": "http://elsewhere/"}, "redirects to 'http://elsewhere/', which is not followed"),
        (401, {}, "set KVTOOL_TOKEN"),
        (500, {}, r"answered 500 \(Internal Server Error\)"),
        (200, {"Content_Length": "1000"}, "broke off after 3 bytes"),
    ],
)
def test_other_answers_are_errors(status: int, headers: dict[str, str], says: str) -> None:
    with answering(b"odd", status, **headers) as url, pytest.raises(StoreError, match=says):
        list(kvtool.Store(url))


def test_more_than_was_named_is_not_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = store["docs/a.md"].segments[0].variants["raw"]
    with answering(b"x" * (variant.nbytes + 1)) as url:
        remote = RemoteStore(url)
        with pytest.raises(StoreError, match="sends more than"):
            remote.open_artifact(variant)
    assert not list(remote.cache.root.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "https://user:word@host",
        "http://host:x",
        "http://ho st",
        "http://h?q",
        "http://h\n",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        kvtool.Store(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", f"http://{'x' * 70}.invalid", "http://127.0.0.1:0"]
)
def test_addresses_that_nobody_has(url: str) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        list(kvtool.Store(url))
