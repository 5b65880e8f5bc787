"""kvtool push: documents into the store of a server, over a real socket."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from anyio import sleep_forever
from starlette.testclient import TestClient
from typer.testing import CliRunner

import kvtool
from kvtool import limits
from kvtool.cli import app
from kvtool.digest import digest
from kvtool.errors import StoreError
from kvtool.store.backends import http
from kvtool.store.backends.http import HttpBackend
from kvtool.store.local import LocalStore
from kvtool.store.transfer.push import push
from kvtool.store.transfer.to_server import ToServer
from tests.server.asking import THREE
from tests.server.store_api.stored import NONE

NAME = "docs/a.txt"


@pytest.fixture
def mine(documents: LocalStore, tmp_path: Path) -> LocalStore:
    """A copy of the server's store, which has lost everything since."""
    mine = LocalStore(shutil.copytree(documents.root, tmp_path / "mine"))
    documents.free(list(documents))
    return mine


@pytest.mark.usefixtures("calibrated")
def test_a_server_gets_everything(
    mine: LocalStore, documents: LocalStore, url: str, counted: Any, served: kvtool.Model
) -> None:
    shutil.rmtree(documents.root / "calibrations")
    printed = CliRunner().invoke(app, ["push", url, "--store", str(mine.root)])
    assert printed.exit_code == 0, printed.stderr
    assert "pushed 3 documents" in printed.stderr
    assert dict(documents) == dict(mine)
    documents.load(NAME, served, "centred")
    counted.requests.clear()
    assert push(mine, url).unchanged == THREE
    assert not [one for one in counted.requests if one[0] == "PUT"]


def test_of_two_pushers_neither_loses_anything(
    mine: LocalStore, documents: LocalStore, url: str, tmp_path: Path
) -> None:
    other = LocalStore(shutil.copytree(mine.root, tmp_path / "other"))
    kvtool.compress(mine, NAME, recipe="lossless")
    kvtool.compress(other, NAME, recipe="kivi")
    start, problems = threading.Barrier(2), []

    def racing(store: LocalStore) -> None:
        start.wait()
        problems.append(push(store, url).problems)

    threads = [threading.Thread(target=racing, args=(store,)) for store in (mine, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [[], []]
    assert documents[NAME].variants == ["raw", "kivi", "lossless"]


class Taken:
    """A limiter that has no room."""

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await sleep_forever()


def test_large_artifacts_go_through_though_uploads_wait(
    mine: LocalStore, documents: LocalStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent is larger than a socket holds: an answer that comes too early breaks the connection."""
    receive = LocalStore.receive

    def slowly(*arguments: Any) -> int:
        time.sleep(0.1)
        return receive(*arguments)

    monkeypatch.setattr(LocalStore, "receive", slowly)
    others = [ToServer(HttpBackend(url)) for _ in range(4)]
    variants = [one for name in mine for one in mine[name].artifacts]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: others[n % 4].take(mine, variants[n % len(variants)], lambda _: None), range(16)
            )
        )
    assert all(map(documents.holds_whole, variants))


def test_a_busy_server_is_waited_for(
    mine: LocalStore, url: str, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "WAITS", (0.01, 0.01))
    monkeypatch.setattr(limits, "UPLOAD_SECONDS", 0.0)
    (tenant,) = service.tenants.values()
    monkeypatch.setattr(tenant, "uploads", Taken())
    report = push(mine, url)
    assert "answered 429 (too many uploads at a time" in str(report.problems[0])


# The request


def put(client: TestClient, manifest: bytes, name: str = NAME, **headers: str) -> Any:
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return client.put(f"/v1/documents/{name}", content=manifest, headers=headers)


def test_a_manifest_replaces_what_was_seen(client: TestClient, documents: LocalStore) -> None:
    before = documents[NAME]
    after = before.with_variant(0, "copy", before.segments[0].variants["raw"])
    etag = f'"{digest(before.to_bytes())}"'
    assert put(client, after.to_bytes()).status_code == 428
    assert put(client, after.to_bytes(), If_None_Match="*").status_code == 412
    assert put(client, after.to_bytes(), If_Match=f'"{NONE}"').status_code == 412
    assert documents[NAME] == before
    answer = put(client, after.to_bytes(), If_Match=etag)
    assert (answer.status_code, answer.json()["name"]) == (200, NAME)
    assert answer.headers["etag"] == client.get(f"/v1/documents/{NAME}").headers["etag"]
    assert documents[NAME] == after
    documents.remove(NAME)
    assert put(client, after.to_bytes(), If_Match=answer.headers["etag"]).status_code == 412
    assert put(client, after.to_bytes(), If_None_Match="*").status_code == 201
    assert documents[NAME] == after


def test_what_is_no_manifest_of_what_is_here(client: TestClient, documents: LocalStore) -> None:
    manifest = documents[NAME].to_bytes()
    documents.remove(NAME)
    for broken in (b"", b"{}", manifest[:-9], manifest.replace(b'"tokens":', b'"tokens":1')):
        assert put(client, broken, If_None_Match="*").status_code == 400
    assert put(client, manifest, "docs/other.txt", If_None_Match="*").status_code == 400
    assert put(client, manifest, "docs/%2e%2e/x", If_None_Match="*").status_code in (400, 404)
    documents.collect()
    answer = put(client, manifest, If_None_Match="*")
    assert answer.status_code == 409
    assert "not here" in answer.json()["error"]["message"]
    assert NAME not in documents


@pytest.mark.usefixtures("cache")
def test_a_server_over_another_place_takes_nothing(
    client: TestClient, service: Any, mine: LocalStore
) -> None:
    (tenant,) = service.tenants.values()
    tenant.store = kvtool.Store(f"file://{mine.root}")
    answer = put(client, mine[NAME].to_bytes(), If_None_Match="*")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "read_only")


def test_an_error_names_the_server(mine: LocalStore, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "receive", _full)
    problems = push(mine, url).problems
    assert problems
    assert all(isinstance(problem, StoreError) and url in str(problem) for problem in problems)


def _full(*_: object, **__: object) -> int:
    from kvtool.system.files import DiskFull

    raise DiskFull("artifacts", "there is no room")
