"""A server over a store that is remote: in a bucket, or another server's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app as commands
from kvtool.codecs import Calibration
from kvtool.errors import UsageError
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Service
from kvtool.store.backends.backend import Unreachable
from kvtool.store.catalog import remote as catalog
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore
from tests.loopback import KEY, SECRET, URL, Objects, endpoint, objects
from tests.server.asking import LIMITS, THREE, cached_tokens, chat, post_chat

__all__ = ["endpoint", "objects"]

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def bucket(objects: Objects, documents: LocalStore) -> Objects:
    """It holds ``documents``, below ``URL``."""
    objects.copy(documents.root)
    return objects


def test_commands_read_it(
    bucket: Objects, documents: LocalStore, commands_read: Callable[[str], None]
) -> None:
    commands_read(URL)
    for arguments in (["pull", URL, "--store", "mine"], ["verify", "--store", "mine"]):
        result = CliRunner().invoke(commands, arguments)
        assert result.exit_code == 0, result.stderr
    assert dict(LocalStore("mine")) == dict(documents)


@pytest.fixture
def local(url: str) -> Iterator[httpx.Client]:
    """A server over ``documents`` in a directory."""
    with httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(params=["bucket", "server"])
def client(
    request: pytest.FixtureRequest, bucket: Objects, url: str, served: kvtool.Model
) -> Iterator[TestClient]:
    """A server over ``bucket``, and one over another server."""
    root = Path(URL if request.param == "bucket" else url)
    over = Service.over(root, served, LIMITS, loading=LoadOptions("raw"))
    with TestClient(create_app(over), raise_server_exceptions=False) as client:
        yield client


def test_answers_over_a_remote_store(client: TestClient, local: httpx.Client, texts: dict[str, str]) -> None:
    for more in ({"documents": ["docs/a.txt"]}, {"documents": THREE[:2], "recompute": 0.5}):
        here, remote = (chat(each, "What is there?", **more) for each in (local, client))
        assert remote["choices"] == here["choices"]
        assert remote["usage"] == here["usage"]
    chat(client, "?", status=404, documents=["docs/z.txt"])
    content = f"{texts['docs/c.txt']}\n\nWhat is kept?"
    until = time.monotonic() + 20
    while not (cached := cached_tokens(chat(client, content))):
        assert time.monotonic() < until, "the beginning is found once the documents are known"
    assert cached >= len(texts["docs/c.txt"])


def test_artifacts_are_passed_on(
    calibrated: Calibration, client: TestClient, documents: LocalStore, served: kvtool.Model
) -> None:
    listed = client.get("/v1/documents").json()["data"]
    assert [each["name"] for each in listed] == THREE
    digest = listed[0]["artifacts"]["centred"][0]
    assert client.get(f"/v1/calibrations/{calibrated.digest}").content == calibrated.to_bytes()
    assert client.get(f"/v1/artifacts/{digest}").content == documents.artifact_path(digest).read_bytes()
    for kind in ("artifacts", "calibrations"):
        assert client.get(f"/v1/{kind}/{'0' * 64}").status_code == 404


def test_nothing_is_written(client: TestClient, documents: LocalStore) -> None:
    digest = documents["docs/a.txt"].segments[0].variants["raw"].artifact
    new = {"model": "served", "contents": [{"parts": [{"text": "A text."}]}]}
    attempts = [
        client.put(f"/v1/artifacts/{digest}", content=documents.artifact_path(digest).read_bytes()),
        client.put(f"/v1/calibrations/{digest}", content=b"x"),
        client.post("/v1/cachedContents", json=new),
        client.get("/v1/cachedContents"),
        client.patch("/v1/cachedContents/x", json={"ttl": "60s"}),
        client.delete("/v1/cachedContents/x"),
    ]
    for answer in attempts:
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "read_only"
        assert "this server's store is read only" in answer.json()["error"]["message"]


def test_a_store_that_cannot_be_reached_is_said_to_be_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(client, "?", documents=["docs/a.txt"])
    store = client.app.state.service.tenants[""].store  # type: ignore[attr-defined]

    def gone(*_: Any) -> Any:
        raise Unreachable("the bucket", "a message for who runs the server")

    for name in ("documents", "manifest", "artifact", "calibration"):
        monkeypatch.setattr(store.backend, name, gone)
    monkeypatch.setattr(catalog, "FRESH", 0.0)
    for answer in (client.get("/v1/documents"), post_chat(client, "?", documents=["docs/b.txt"])):
        assert answer.status_code == 503
        assert "cannot be reached" in answer.json()["error"]["message"]
        assert "who runs" not in answer.text
    # This one was read before.
    chat(client, "?", documents=["docs/a.txt"])
    chat(client, "A plain prompt.")


def test_tenants_have_folders_of_a_bucket_and_none_of_a_server(
    objects: Objects, documents: LocalStore, served: kvtool.Model
) -> None:
    objects.copy(documents.root, "some/where/tenants/alice")
    alice = Service.over(Path(URL), served, LIMITS, names=["alice"]).tenants["alice"]
    assert isinstance(alice.store, RemoteStore)
    assert str(alice.store) == f"{URL}/tenants/alice"
    assert list(alice.store) == THREE
    with pytest.raises(UsageError, match="http://host: is one store, and --tokens needs one for each tenant"):
        Service.over(Path("http://host"), served, LIMITS, names=["alice"])


@pytest.mark.slow
def test_a_process_serves_a_bucket(
    bucket: Objects, starting: Callable[..., AbstractContextManager[Any]], documents: LocalStore
) -> None:
    with starting("--store", URL) as running:
        assert f"over {URL}: http://127.0.0.1" in running.log[-1]
        listed = httpx.get(f"{running.url}/v1/documents").json()["data"]
        assert [each["name"] for each in listed] == THREE
        with httpx.Client(base_url=running.url) as client:
            assert cached_tokens(chat(client, "?", documents=THREE[:1])) > 0
            post_chat(client, "?")
        running.process.terminate()
        assert running.process.wait(30) == 0
        assert not [line for line in running.log if KEY in line or SECRET in line]
