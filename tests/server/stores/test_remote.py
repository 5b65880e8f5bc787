"""A server's documents as a store, read over a real socket."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import trustme

import kvtool
from kvtool import Store
from kvtool.artifact.reading import BrokenArtifact
from kvtool.codecs import Calibration
from kvtool.errors import ArtifactError, StoreError, UsageError
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.catalog import remote as catalog
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.local import LocalStore, writable
from tests.server.asking import THREE

Listening = Callable[..., AbstractContextManager[str]]

pytestmark = pytest.mark.usefixtures("cache")


def artifacts_in(root: Path) -> set[str]:
    return {path.stem for path in root.rglob("artifacts/*/*.safetensors")}


# As a store


def test_a_server_is_a_store(
    url: str, documents: LocalStore, served: kvtool.Model, calibrated: Calibration
) -> None:
    remote = kvtool.Store(url)
    assert isinstance(remote, Store)
    assert repr(remote) == f"Store('{url}')"
    assert list(remote) == THREE == sorted(remote)
    assert len(remote) == 3
    assert "docs/a.txt" in remote
    assert not [name for name in ("docs/z.txt", "../a", "", 3) if name in remote]
    assert remote["docs/a.txt"] == documents["docs/a.txt"]
    assert remote.known().keys() == documents.known().keys()
    for variant in ("raw", "centred"):
        assert remote.size("docs/a.txt", variant) == documents.size("docs/a.txt", variant)
    assert not artifacts_in(remote.cache.root), "known without being fetched"

    remote.open("docs/a.txt", "centred").verify()
    mine, theirs = remote.read("docs/a.txt"), documents.read("docs/a.txt")
    assert all(torch.equal(x.keys, y.keys) for x, y in zip(mine.layers, theirs.layers, strict=True))
    for variant in ("raw", "centred"):
        one, other = (s.load("docs/b.txt", served, variant) for s in (remote, documents))
        assert torch.equal(one.layers[1].values, other.layers[1].values)
    blended = kvtool.blend(remote, THREE[:2], served, recompute=0.5)
    assert blended.token_ids.tolist() == kvtool.blend(documents, THREE[:2], served).token_ids.tolist()


def test_an_artifact_is_fetched_once(url: str, counted: Any, served: kvtool.Model) -> None:
    kvtool.Store(url).load("docs/a.txt", served)
    assert counted.requests == {"documents": 1, "artifacts": 2}
    kvtool.Store(url).load("docs/a.txt", served)
    kvtool.Store(f"{url}/v1/").load("docs/a.txt", served)
    assert counted.requests == {"documents": 3, "artifacts": 2}


def test_a_second_read_needs_no_network(
    counted: Any, listening: Listening, served: kvtool.Model, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(counted) as url:
        first = kvtool.Store(url).load("docs/a.txt", served)
    with caplog.at_level(logging.WARNING, "kvtool"):
        second = kvtool.Store(url).load("docs/a.txt", served)
    assert torch.equal(first.layers[0].keys, second.layers[0].keys)
    assert "going on with what was kept" in caplog.text
    for unknown in (lambda: kvtool.Store(url)["docs/b.txt"], lambda: list(kvtool.Store(url))):
        says = rf"{url}.*cannot be reached .*is kvtool serve-cache running there"
        with pytest.raises(StoreError, match=says):
            unknown()


def test_a_document_that_changes_or_goes_is_followed(
    url: str, documents: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "FRESH", 0.0)
    remote = kvtool.Store(url)
    before = remote["docs/a.txt"]
    kvtool.compress(documents, ["docs/a.txt"], recipe="lossless")
    assert remote["docs/a.txt"] == documents["docs/a.txt"] != before
    documents.remove("docs/a.txt")
    with pytest.raises(DocumentMissing, match=rf"docs/a.txt: is not in the store {url}; did you mean docs/"):
        remote["docs/a.txt"]
    assert "docs/a.txt" not in LocalStore(remote.cache.root)


def test_it_is_read_only(url: str, served: kvtool.Model) -> None:
    remote = kvtool.Store(url)
    attempts: list[Callable[[], Any]] = [
        lambda: writable(remote),
        lambda: kvtool.calibrate(remote, model=served),
        lambda: kvtool.blend(remote, THREE[:2], served).save(remote, "both", served),
        lambda: kvtool.compress(remote, recipe="lossless"),
        lambda: kvtool.prefill(["docs"], model=served, store=remote, replace=True, no_prefix=True),
    ]
    for attempt in attempts:
        with pytest.raises(StoreError, match=f"{url}: is read only; kvtool pull copies"):
            attempt()


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"?", lambda d: d[:-9], lambda d: b"<html>"])
def test_what_was_changed_is_not_kept(
    url: str, documents: LocalStore, change: Callable[[bytes], bytes]
) -> None:
    path = documents.open("docs/a.txt").path
    path.write_bytes(change(path.read_bytes()))
    remote = kvtool.Store(url)
    with pytest.raises(ArtifactError, match=path.stem):
        remote.read("docs/a.txt")
    assert path.stem not in artifacts_in(remote.cache.root)
    assert not list(remote.cache.root.rglob(".tmp-*"))


def test_one_that_the_server_lost_is_said_so(url: str, documents: LocalStore) -> None:
    path = documents.open("docs/a.txt").path
    path.unlink()
    with pytest.raises(StoreError, match=rf"{url}/v1/artifacts/{path.stem}: is missing"):
        kvtool.Store(url).read("docs/a.txt")


def test_a_kept_one_that_broke_is_named(url: str, documents: LocalStore) -> None:
    remote = kvtool.Store(url)
    path = remote.open("docs/a.txt").path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BrokenArtifact):
        remote.read("docs/a.txt")
    remote.discard(remote["docs/a.txt"].segments[0].variants["raw"])
    remote.open("docs/a.txt").verify()


def test_commands_read_it(url: str, commands_read: Callable[[str], None]) -> None:
    commands_read(url)


# HTTPS


def test_a_certificate_must_be_known_to_the_system(
    listening: Listening, counted: Any, served: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, unknown = tmp_path / "authority.pem", tmp_path / "unknown.pem"
    trustme.CA().cert_pem.write_to_path(str(unknown))
    issuing = trustme.CA()
    issuing.cert_pem.write_to_path(str(authority))
    server = tmp_path / "server.pem"
    issuing.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
    with listening(counted, ssl_certfile=server) as url:
        assert url.startswith("https://")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert kvtool.Store(url).load("docs/a.txt", served).get_seq_length() > 0
        for trusted, name, says in (
            (unknown, "127.0.0.1", "unable to get local issuer"),
            (authority, "localhost", "Hostname mismatch"),
        ):
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            remote = kvtool.Store(url.replace("127.0.0.1", name))
            # What was kept does not stand in: it is somebody else who answers, maybe.
            for read in (lambda: list(remote), lambda: remote["docs/a.txt"]):  # noqa: B023
                message = rf"certificate is not trusted \(.*{says}.*SSL_CERT_FILE"
                with pytest.raises(StoreError, match=message):
                    read()
    assert counted.requests == {"documents": 1, "artifacts": 2}


# Tokens


def test_the_token_is_given_and_keeps_apart(
    listening: Listening, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {"0123456789abcdef": ""}
    with listening(create_app(service, tokens)) as url:
        with pytest.raises(StoreError, match="knows no such token; set KVTOOL_TOKEN"):
            list(kvtool.Store(url))
        without = kvtool.Store(url)
        monkeypatch.setenv("KVTOOL_TOKEN", "0123456789abcdef\n")
        assert list(kvtool.Store(url)) == THREE
        assert kvtool.Store(url).cache.root != without.cache.root
    monkeypatch.setenv("KVTOOL_TOKEN", "two\nlines")
    with pytest.raises(UsageError, match="KVTOOL_TOKEN"):
        kvtool.Store(url)
