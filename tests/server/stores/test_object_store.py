"""A store in a bucket, read over a real socket from a server that speaks S3."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import torch
from moto.server import ThreadedMotoServer
from starlette.testclient import TestClient
from typer.testing import CliRunner

import kvtool
from kvtool import Store
from kvtool.cli import app as commands
from kvtool.codecs import Calibration
from kvtool.errors import ArtifactError, ModelError, StoreError, UsageError
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import Loading
from kvtool.server.runtime.service import Limits, Serving
from kvtool.store import headers, manifest_cache
from kvtool.store.backends.backend import Unreachable
from kvtool.store.backends.object_store import ObjectStoreBackend
from kvtool.store.base import DocumentMissing
from kvtool.store.headers import headers_of
from kvtool.store.layout import MARKER
from kvtool.store.local import LocalStore, writable
from kvtool.store.remote import RemoteStore

THREE = ["docs/a.txt", "docs/b.txt", "docs/c.txt"]
KEY, SECRET = "AKIAEXAMPLE", "a-key-that-nobody-may-see"
URL = "s3://caches/some/where"

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Objects:
    """The bucket as who fills it sees it."""

    def __init__(self, endpoint: str) -> None:
        self.s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        self.s3.create_bucket(Bucket="caches")

    def put(self, file: str, data: bytes, below: str = "some/where") -> None:
        self.s3.put_object(Bucket="caches", Key=f"{below}/{file}", Body=data)

    def copy(self, root: Path, below: str = "some/where") -> None:
        for path in root.rglob("*"):
            if path.is_file():
                self.put(path.relative_to(root).as_posix(), path.read_bytes(), below)

    def remove(self, file: str) -> None:
        self.s3.delete_object(Bucket="caches", Key=f"some/where/{file}")

    def clear(self) -> None:
        for file in self.s3.list_objects_v2(Bucket="caches").get("Contents", []):
            self.s3.delete_object(Bucket="caches", Key=file["Key"])
        self.s3.delete_bucket(Bucket="caches")


@pytest.fixture
def objects(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """An empty bucket, and an environment that leads there."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = Objects(endpoint)
    yield found
    found.clear()


@pytest.fixture
def bucket(objects: Objects, documents: Store) -> Objects:
    """It holds ``documents``, below ``URL``."""
    objects.copy(documents.root)
    return objects


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of file was asked for, and lists."""
    counts: Counter[str] = Counter()
    get, documents = ObjectStoreBackend._read, ObjectStoreBackend.documents

    def counted(self: ObjectStoreBackend, file: str, most: int) -> Any:
        counts[file.partition("/")[0]] += 1
        return get(self, file, most)

    def listed(self: ObjectStoreBackend) -> Any:
        counts["list"] += 1
        return documents(self)

    monkeypatch.setattr(ObjectStoreBackend, "_read", counted)
    monkeypatch.setattr(ObjectStoreBackend, "documents", listed)
    return counts


def file_of(store: Store, name: str) -> str:
    return store.open(name).path.relative_to(store.root).as_posix()


# As a store


def test_a_bucket_is_a_store(
    calibrated: Calibration, bucket: Objects, documents: Store, served: kvtool.Model
) -> None:
    remote = Store(Path(URL))
    assert repr(remote) == f"Store('{URL}')"
    assert list(remote) == THREE
    assert "docs/a.txt" in remote
    assert "docs/z.txt" not in remote
    assert dict(remote) == dict(documents)
    assert remote.committed("docs/a.txt") == pytest.approx(time.time(), abs=60)
    for variant in ("raw", "centred"):
        one, other = (s.load("docs/b.txt", served, variant) for s in (remote, documents))
        for x, y in zip(one.layers, other.layers, strict=True):
            assert torch.equal(x.keys, y.keys)
            assert torch.equal(x.values, y.values)
    assert not isinstance(remote, LocalStore)
    with pytest.raises(StoreError, match=f"{URL}: is read only; kvtool pull copies"):
        writable(remote)


def test_odd_names_are_found(objects: Objects, documents: Store) -> None:
    names = ["50% off?.txt", "a#b*c.txt", "x.json/~y", ".tmp-z", "ü [a]{b}^`'.txt", "a  b:c|d.txt"]
    for name in names:
        body = Store(documents.root)["docs/a.txt"]
        with documents.writing():
            documents.commit(type(body)(**{**body.__dict__, "name": name}))
    objects.copy(documents.root)
    remote = Store(URL)
    assert set(remote) == {*THREE, *names}
    assert all(remote[name] == documents[name] for name in names)


def test_what_was_asked_is_not_asked_again(bucket: Objects, documents: Store, asked: Counter[str]) -> None:
    remote = Store(URL)
    for _ in range(3):
        assert [remote[name].name for name in remote] == THREE
    assert asked == {MARKER: 1, "list": 1, "manifests": 3}


def test_a_list_says_which_manifests_changed(
    bucket: Objects, documents: Store, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Store(URL)
    assert dict(remote) == dict(documents)
    kvtool.compress(documents, ["docs/a.txt"], recipe="lossless")
    documents.remove("docs/b.txt")
    bucket.copy(documents.root)
    bucket.remove("manifests/docs/b.txt.json")
    asked.clear()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + manifest_cache.FRESH)
    assert dict(remote) == dict(documents)
    assert asked == {"list": 1, "manifests": 1}
    with pytest.raises(DocumentMissing, match=rf"docs/b.txt: is not in the store {URL}; did you mean docs/"):
        remote["docs/b.txt"]


def test_token_ids_need_no_more_than_the_beginning(
    bucket: Objects, documents: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "FIRST", 64)
    remote = Store(URL)
    assert isinstance(remote, RemoteStore)
    part, came = remote.backend.part, 0

    def counted(digest: str, start: int, stop: int) -> bytes:
        nonlocal came
        came += stop - start
        return part(digest, start, stop)

    monkeypatch.setattr(remote.backend, "part", counted)
    for name in THREE:
        assert torch.equal(headers_of(remote).open(name).token_ids, documents.open(name).token_ids)
    assert 0 < came < documents.size(name) / 2
    assert not list(remote.cache.root.rglob("*.safetensors"))


def test_how_long_fetching_takes_is_measured(bucket: Objects) -> None:
    remote = Store(URL)
    first, second = (remote[name].segments[0].variants["raw"] for name in THREE[:2])
    assert remote.fetch_seconds(first) == 0.0, "not known yet"
    remote.open_artifact(first)
    assert remote.fetch_seconds(first) == 0.0, "it is here"
    assert remote.fetch_seconds(second) > 0


def test_commands_read_it(bucket: Objects, documents: Store, commands_read: Callable[[str], None]) -> None:
    commands_read(URL)
    for arguments in (["pull", URL, "--store", "mine"], ["verify", "--store", "mine"]):
        result = CliRunner().invoke(commands, arguments)
        assert result.exit_code == 0, result.stderr
    assert dict(Store("mine")) == dict(documents)


# What is wrong


def test_a_flipped_byte_is_refused(bucket: Objects, documents: Store) -> None:
    file = file_of(documents, "docs/a.txt")
    data = (documents.root / file).read_bytes()
    bucket.put(file, data[:-1] + bytes([data[-1] ^ 1]))
    remote = Store(URL)
    with pytest.raises(ArtifactError, match="has changed since it was written"):
        remote.read("docs/a.txt")
    assert not list(remote.cache.root.rglob("*.safetensors"))


@pytest.mark.parametrize(("change", "says"), [(b"x", "more than the"), (None, "is not there")])
def test_an_artifact_that_is_too_large_or_missing(
    bucket: Objects, documents: Store, change: bytes | None, says: str
) -> None:
    file = file_of(documents, "docs/a.txt")
    if change is None:
        bucket.remove(file)
    else:
        bucket.put(file, (documents.root / file).read_bytes() + change)
    with pytest.raises(StoreError, match=f"{URL}/{file}: .*{says}"):
        Store(URL).read("docs/a.txt")


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        (None, f"{URL}: is not a kvtool store .no {MARKER}.; name the folder"),
        (b'{"format":2}', f"{URL}/{MARKER}: is a store of format 2, this kvtool reads up to 1; upgrade"),
        (b"<html>", "it should say"),
    ],
)
def test_a_missing_or_newer_marker_is_refused(bucket: Objects, marker: bytes | None, says: str) -> None:
    if marker is None:
        bucket.remove(MARKER)
    else:
        bucket.put(MARKER, marker)
    with pytest.raises(StoreError, match=says):
        Store(URL)


def test_a_bucket_that_is_not_there_is_said_so(objects: Objects) -> None:
    with pytest.raises(StoreError, match="s3://nobodys/x: is not a kvtool store"):
        Store("s3://nobodys/x")


def test_without_a_network_what_was_read_stands_in(
    bucket: Objects, served: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Store(URL).load("docs/a.txt", served)
    monkeypatch.setattr("kvtool.store.backends.object_store.RETRIES", 0)
    remote = Store(URL)
    monkeypatch.setattr(remote.backend, "_store", store_at("http://127.0.0.1:1"))  # type: ignore[attr-defined]
    assert torch.equal(remote.load("docs/a.txt", served).layers[0].keys, first.layers[0].keys)
    for unknown in (lambda: remote["docs/b.txt"], lambda: list(remote)):
        with pytest.raises(Unreachable, match=f"{URL}/.* cannot be reached .no answer.; check AWS_ACCESS"):
            unknown()


def store_at(endpoint: str) -> Any:
    from obstore.store import S3Store

    return S3Store(
        "caches", endpoint=endpoint, client_options={"allow_http": True}, retry_config={"max_retries": 0}
    )


@pytest.mark.parametrize("status", [301, 400, 401, 403, 500])
def test_no_error_says_what_the_service_said(
    status: int, objects: Objects, listening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 repeats the access key, and what was signed, in its answers."""

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": f"<AWSAccessKeyId>{KEY}".encode()})

    monkeypatch.setattr("kvtool.store.backends.object_store.RETRIES", 0)
    with listening(refuses) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreError) as raised:
            list(Store(URL))
    assert KEY not in str(raised.value)
    assert raised.value.__suppress_context__
    assert str(status) in str(raised.value) or status == 301


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///x", "s3://key:word@bucket/x", "s3://bucket?sig=word", "s3://b/%2e", "ftp://word@host/x"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected (http.* )?s3://BUCKET/PREFIX") as raised:
        Store(url)
    assert "word" not in str(raised.value)


def test_an_environment_that_says_nothing_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(
        StoreError, match="az://container/x: cannot be opened; check AZURE_STORAGE_ACCOUNT_NAME"
    ):
        Store("az://container/x")


def test_without_obstore_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(ModelError, match=r"pip install 'kvtool\[bucket\]'"):
        Store(URL)


# Served


@pytest.fixture
def local(url: str) -> Iterator[httpx.Client]:
    """A server over ``documents`` where they lie."""
    with httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(params=["bucket", "server"])
def client(
    request: pytest.FixtureRequest, bucket: Objects, url: str, served: kvtool.Model
) -> Iterator[TestClient]:
    """A server over ``bucket``, and one over another server."""
    root = Path(URL if request.param == "bucket" else url)
    over = Serving.over(root, served, Limits(memory=1 << 28), loading=Loading("raw"))
    with TestClient(create_app(over), raise_server_exceptions=False) as client:
        yield client


def chat(client: httpx.Client, content: str, **more: Any) -> Any:
    body = {"model": "served", "messages": [{"role": "user", "content": content}], "temperature": 0}
    return client.post("/v1/chat/completions", json={**body, "max_tokens": 8, **more})


def test_answers_over_a_store_that_lies_elsewhere(
    client: TestClient, local: httpx.Client, texts: dict[str, str]
) -> None:
    for more in ({"documents": ["docs/a.txt"]}, {"documents": THREE[:2], "recompute": 0.5}):
        here, there = (chat(each, "What is there?", **more).json() for each in (local, client))
        assert there["choices"] == here["choices"]
        assert there["usage"] == here["usage"]
    assert chat(client, "?", documents=["docs/z.txt"]).status_code == 404
    content = f"{texts['docs/c.txt']}\n\nWhat is kept?"
    until = time.monotonic() + 20
    while not (usage := chat(client, content).json()["usage"])["prompt_tokens_details"]["cached_tokens"]:
        assert time.monotonic() < until, "the beginning is found once the documents are known"
    assert usage["prompt_tokens_details"]["cached_tokens"] >= len(texts["docs/c.txt"])


def test_artifacts_are_passed_on(
    calibrated: Calibration, client: TestClient, documents: Store, served: kvtool.Model
) -> None:
    listed = client.get("/v1/documents").json()["data"]
    assert [each["name"] for each in listed] == THREE
    digest = listed[0]["artifacts"]["centred"][0]
    assert client.get(f"/v1/calibrations/{calibrated.digest}").content == calibrated.to_bytes()
    assert client.get(f"/v1/artifacts/{digest}").content == documents.artifact_path(digest).read_bytes()
    for kind in ("artifacts", "calibrations"):
        assert client.get(f"/v1/{kind}/{'0' * 64}").status_code == 404


def test_nothing_is_written(client: TestClient, documents: Store) -> None:
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
    assert chat(client, "?", documents=["docs/a.txt"]).status_code == 200
    store = client.app.state.serving.tenants[""].store  # type: ignore[attr-defined]

    def gone(*_: Any) -> Any:
        raise Unreachable("the bucket", "a message for who runs the server")

    for name in ("documents", "manifest", "artifact", "calibration"):
        monkeypatch.setattr(store.backend, name, gone)
    monkeypatch.setattr(manifest_cache, "FRESH", 0.0)
    for answer in (client.get("/v1/documents"), chat(client, "?", documents=["docs/b.txt"])):
        assert answer.status_code == 503
        assert "cannot be reached" in answer.json()["error"]["message"]
        assert "who runs" not in answer.text
    assert chat(client, "?", documents=["docs/a.txt"]).status_code == 200, "it was read before"
    assert chat(client, "A plain prompt.").status_code == 200


def test_tenants_have_folders_of_a_bucket_and_none_of_a_server(
    objects: Objects, documents: Store, served: kvtool.Model
) -> None:
    objects.copy(documents.root, "some/where/tenants/alice")
    alice = Serving.over(Path(URL), served, Limits(memory=1 << 28), names=["alice"]).tenants["alice"]
    assert isinstance(alice.store, RemoteStore)
    assert str(alice.store) == f"{URL}/tenants/alice"
    assert list(alice.store) == THREE
    with pytest.raises(UsageError, match="http://host: is one store, and --tokens needs one for each tenant"):
        Serving.over(Path("http://host"), served, Limits(memory=1 << 28), names=["alice"])


@pytest.mark.slow
def test_a_process_serves_a_bucket(
    bucket: Objects, starting: Callable[..., AbstractContextManager[Any]], documents: Store
) -> None:
    with starting("--store", URL) as running:
        assert f"over {URL}: http://127.0.0.1" in running.said[-1]
        listed = httpx.get(f"{running.url}/v1/documents").json()["data"]
        assert [each["name"] for each in listed] == THREE
        body = {"model": "served", "messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
        asked = httpx.post(f"{running.url}/v1/chat/completions", json={**body, "documents": THREE[:1]})
        assert asked.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        httpx.post(f"{running.url}/v1/chat/completions", json=body)
        running.process.terminate()
        assert running.process.wait(30) == 0
        assert not [line for line in running.said if KEY in line or SECRET in line]
