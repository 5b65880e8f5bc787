"""A store in a bucket, read over a real socket from a server that speaks S3. What all backends do is in test_backends.py."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from kvtool import Store
from kvtool.codecs import Calibration
from kvtool.errors import ModelError, StoreError, UsageError
from kvtool.store import headers
from kvtool.store.backends.backend import Unreachable
from kvtool.store.backends.object_store import ObjectStoreBackend
from kvtool.store.catalog import remote as catalog
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.headers import headers_of
from kvtool.store.layout import MARKER
from kvtool.store.local import LocalStore, writable
from kvtool.store.remote import RemoteStore
from tests.loopback import KEY, URL, Objects, listen

THREE = ["c.txt", "docs/a.md", "docs/b.md"]

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def bucket(objects: Objects, store: Store) -> Objects:
    """It holds ``store``, below ``URL``."""
    objects.copy(store.root)
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
    calibrated: Calibration, bucket: Objects, store: Store, tiny: kvtool.Model
) -> None:
    remote = Store(Path(URL))
    assert repr(remote) == f"Store('{URL}')"
    assert list(remote) == THREE
    assert "docs/a.md" in remote
    assert "docs/z.md" not in remote
    assert dict(remote) == dict(store)
    assert remote.committed("docs/a.md") == pytest.approx(time.time(), abs=60)
    for variant in ("raw", "centred"):
        one, other = (s.load("docs/b.md", tiny, variant) for s in (remote, store))
        for x, y in zip(one.layers, other.layers, strict=True):
            assert torch.equal(x.keys, y.keys)
            assert torch.equal(x.values, y.values)
    assert not isinstance(remote, LocalStore)
    with pytest.raises(StoreError, match=f"{URL}: is read only; kvtool pull copies"):
        writable(remote)


def test_what_was_asked_is_not_asked_again(bucket: Objects, store: Store, asked: Counter[str]) -> None:
    remote = Store(URL)
    for _ in range(3):
        assert [remote[name].name for name in remote] == THREE
    assert asked == {MARKER: 1, "list": 1, "manifests": 3}


def test_a_list_says_which_manifests_changed(
    bucket: Objects, store: Store, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Store(URL)
    assert dict(remote) == dict(store)
    kvtool.compress(store, ["docs/a.md"], recipe="lossless")
    store.remove("docs/b.md")
    bucket.copy(store.root)
    bucket.remove("manifests/docs/b.md.json")
    asked.clear()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + catalog.FRESH)
    assert dict(remote) == dict(store)
    assert asked == {"list": 1, "manifests": 1}
    with pytest.raises(DocumentMissing, match=rf"docs/b.md: is not in the store {URL}; did you mean docs/"):
        remote["docs/b.md"]


def test_token_ids_need_no_more_than_the_beginning(
    bucket: Objects, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "FIRST", 64)
    remote = Store(URL)
    assert isinstance(remote, RemoteStore)
    parts, came = remote.backend.parts, 0

    def counted(digest: str, ranges: Sequence[range]) -> Sequence[bytes]:
        nonlocal came
        came += sum(map(len, ranges))
        return parts(digest, ranges)

    monkeypatch.setattr(remote.backend, "parts", counted)
    for name in THREE:
        assert torch.equal(headers_of(remote).open(name).token_ids, store.open(name).token_ids)
    assert 0 < came < store.size(name) / 2
    assert not list(remote.cache.root.rglob("*.safetensors"))


def test_how_long_fetching_takes_is_measured(bucket: Objects) -> None:
    remote = Store(URL)
    first, second = (remote[name].segments[0].variants["raw"] for name in THREE[:2])
    assert remote.fetch_seconds(first) == 0.0, "not known yet"
    remote.open_artifact(first)
    assert remote.fetch_seconds(first) == 0.0, "it is here"
    assert remote.fetch_seconds(second) > 0


# What is wrong


@pytest.mark.parametrize(("change", "says"), [(b"x", "more than the"), (None, "is missing")])
def test_an_artifact_that_is_too_large_or_missing(
    bucket: Objects, store: Store, change: bytes | None, says: str
) -> None:
    file = file_of(store, "docs/a.md")
    if change is None:
        bucket.remove(file)
    else:
        bucket.put(file, (store.root / file).read_bytes() + change)
    with pytest.raises(StoreError, match=f"{URL}/{file}: .*{says}"):
        Store(URL).read("docs/a.md")


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
    bucket: Objects, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Store(URL).load("docs/a.md", tiny)
    monkeypatch.setattr("kvtool.store.backends.object_store.RETRIES", 0)
    remote = Store(URL)
    monkeypatch.setattr(remote.backend, "_store", store_at("http://127.0.0.1:1"))  # type: ignore[attr-defined]
    assert torch.equal(remote.load("docs/a.md", tiny).layers[0].keys, first.layers[0].keys)
    for unknown in (lambda: remote["docs/b.md"], lambda: list(remote)):
        with pytest.raises(Unreachable, match=f"{URL}/.* cannot be reached .no answer.; check AWS_ACCESS"):
            unknown()


def store_at(endpoint: str) -> Any:
    from obstore.store import S3Store

    return S3Store(
        "caches", endpoint=endpoint, client_options={"allow_http": True}, retry_config={"max_retries": 0}
    )


@pytest.mark.parametrize("status", [301, 400, 401, 403, 500])
def test_no_error_says_what_the_service_said(
    status: int, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 repeats the access key, and what was signed, in its answers."""

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": f"<AWSAccessKeyId>{KEY}".encode()})

    monkeypatch.setattr("kvtool.store.backends.object_store.RETRIES", 0)
    with listen(refuses) as url:
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
