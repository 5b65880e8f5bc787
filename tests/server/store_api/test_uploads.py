"""Uploads: what is sent is kept only if it is true."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvtool import limits
from kvtool.codecs import Calibration
from kvtool.server.app import create_app
from kvtool.server.http import body_limits
from kvtool.server.runtime.service import Service
from kvtool.server.store_api import artifacts
from kvtool.store.local import LocalStore
from tests.server.store_api.stored import NONE, files, raw_of


def test_an_artifact_that_is_what_it_says_is_kept(client: TestClient, documents: LocalStore) -> None:
    name, data = raw_of(documents)
    path = documents.artifact_path(name)
    path.unlink()
    answer = client.put(f"/v1/artifacts/{name}", content=data)
    assert answer.status_code == 201
    assert answer.json() == {"digest": name, "bytes": len(data)}
    assert path.read_bytes() == data
    assert client.put(f"/v1/artifacts/{name}", content=iter([data[:9], data[9:]])).status_code == 200


def test_a_broken_one_is_mended(client: TestClient, documents: LocalStore) -> None:
    name, data = raw_of(documents)
    documents.artifact_path(name).write_bytes(data[:-1] + b"?")
    assert client.put(f"/v1/artifacts/{name}", content=data).status_code == 200
    assert documents.artifact_path(name).read_bytes() == data


@pytest.mark.parametrize(
    "changed",
    [
        lambda data: b"",
        lambda data: b"x",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:20] + b"!" + data[21:],
        lambda data: b"\xff" * 100,
    ],
)
def test_one_that_is_not_leaves_nothing(
    client: TestClient, documents: LocalStore, changed: Callable[[bytes], bytes]
) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)
    for digest_said in (name, NONE):
        answer = client.put(f"/v1/artifacts/{digest_said}", content=changed(data))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "digest_mismatch"
        assert error["message"].startswith(digest_said)
        assert str(documents.root) not in error["message"]
        assert ".tmp" not in error["message"]
    assert files(documents.root) == before


def test_a_true_artifact_of_another_name_is_refused(client: TestClient, documents: LocalStore) -> None:
    _, data = raw_of(documents)
    answer = client.put(f"/v1/artifacts/{NONE}", content=data)
    assert answer.status_code == 400
    assert "another artifact" in answer.json()["error"]["message"]
    assert client.put("/v1/artifacts/x", content=data).json()["error"]["param"] == "digest"


def test_an_artifact_follows_its_calibration(
    client: TestClient, documents: LocalStore, calibrated: Calibration
) -> None:
    variant = documents["docs/a.txt"].segments[0].variants["centred"]
    data = documents.path_of(variant).read_bytes()
    documents.path_of(variant).unlink()
    documents.calibrations.path_of(calibrated.digest).unlink()
    # The server's own Store object remembers calibrations that it has read; it has read none.
    refused = client.put(f"/v1/artifacts/{variant.artifact}", content=data)
    assert refused.status_code == 400
    assert f"needs calibration {calibrated.digest}" in refused.json()["error"]["message"]
    path = f"/v1/calibrations/{calibrated.digest}"
    assert client.put(path, content=calibrated.to_bytes() + b"x").status_code == 400
    assert client.put(path, content=calibrated.to_bytes()).status_code == 201
    assert client.put(f"/v1/artifacts/{variant.artifact}", content=data).status_code == 201
    documents.open("docs/a.txt", "centred").verify()


def test_too_large_is_413_announced_or_not(
    client: TestClient, documents: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)
    monkeypatch.setitem(artifacts.UPLOADS, "/v1/artifacts/", len(data) - 1)
    for body in (data, iter([data[:100], data[100:]])):
        answer = client.put(f"/v1/artifacts/{name}", content=body)
        assert answer.status_code == 413
        assert "larger than" in answer.json()["error"]["message"]
    assert files(documents.root) == before
    monkeypatch.setitem(artifacts.UPLOADS, "/v1/artifacts/", len(data))
    assert client.put(f"/v1/artifacts/{name}", content=data).status_code == 200


def test_a_full_disk_is_507(
    client: TestClient, documents: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("kvtool.system.files.os.fsync", full)
        answer = client.put(f"/v1/artifacts/{name}", content=data)
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["error"]["message"]
    assert files(documents.root) == before


def test_uploads_of_one_tenant_are_few_at_a_time(
    client: TestClient, documents: LocalStore, service: Service
) -> None:
    name, data = raw_of(documents)
    service.tenants[""].uploads.total_tokens = 0
    answer = client.put(f"/v1/artifacts/{name}", content=data)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


def scope_of(name: str, service: Service) -> dict[str, Any]:
    """ASGI's scope of an upload."""
    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/v1/artifacts/{name}",
        "headers": [],
        "query_string": b"",
    }
    return {**scope, "state": {"tenant": service.tenants[""]}}


def test_an_upload_that_trickles_is_given_up(service: Service, documents: LocalStore) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)
    guard = body_limits.BodyLimits(create_app(service).router, seconds=0.05, streamed=artifacts.UPLOADS)
    sent: list[Any] = []

    async def trickle() -> Any:
        await asyncio.sleep(0.04)
        return {"type": "http.request", "body": data[:1], "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(Exception, match="slower than 262,144 bytes a second"):
        asyncio.run(guard(scope_of(name, service), trickle, send))
    assert sent == []
    assert files(documents.root) == before


def test_a_client_that_goes_away_leaves_nothing(service: Service, documents: LocalStore) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)
    part = {"type": "http.request", "body": data[:1000], "more_body": True}
    messages = iter([part, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    with pytest.raises(Exception, match="did not arrive"):
        asyncio.run(create_app(service).router(scope_of(name, service), receive, send))
    assert files(documents.root) == before


def test_an_upload_may_not_claim_more_than_is_sensible(
    client: TestClient, documents: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = raw_of(documents)
    monkeypatch.setattr(limits, "ARTIFACT_TOKENS", 3)
    answer = client.put(f"/v1/artifacts/{name}", content=data)
    assert answer.status_code == 400
    assert "more than 3 tokens; nothing was kept" in answer.json()["error"]["message"]
