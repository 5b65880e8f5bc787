"""Documents, artifacts and calibrations as they are, to their owner alone; what is sent is kept only if it is true."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import kvtool
from kvtool import Store, limits
from kvtool.codecs import Calibration
from kvtool.digest import digest
from kvtool.model.conversation import Message, chat_tokens
from kvtool.server.app import create_app
from kvtool.server.http import body_limits
from kvtool.server.runtime.service import Limits, Serving
from kvtool.store.manifest import Document

THREE = ["docs/a.txt", "docs/b.txt", "docs/c.txt"]
NONE = "0" * 64
TOKENS = {"token-of-the-first": "first", "token-of-the-second": "second"}


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def raw_of(store: Store, name: str = "docs/a.txt") -> tuple[str, bytes]:
    variant = store[name].segments[0].variants["raw"]
    return variant.artifact, store.path_of(variant).read_bytes()


@pytest.fixture
def two(served: kvtool.Model, documents: Store, tmp_path: Path) -> Iterator[dict[str, TestClient]]:
    """Two tenants over one server; the documents are the first's."""
    root = tmp_path / "tenants"
    (root / "tenants").mkdir(parents=True)
    documents.root.rename(root / "tenants" / "first")
    serving = Serving.over(root, served, Limits(memory=1 << 28), names=set(TOKENS.values()))
    app = create_app(serving, TOKENS)
    with TestClient(app, raise_server_exceptions=False):
        yield {
            name: TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"})
            for token, name in TOKENS.items()
        }


# Documents


def test_documents_are_listed_with_what_they_are(
    client: TestClient, documents: Store, served: kvtool.Model, calibrated: Calibration
) -> None:
    chat = {"model": "served", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    assert client.post("/v1/chat/completions", json=chat | {"documents": ["docs/b.txt"]}).status_code == 200
    body = client.get("/v1/documents").json()
    assert body["object"] == "list"
    assert [entry["name"] for entry in body["data"]] == THREE
    assert [entry["hits"] for entry in body["data"]] == [0, 1, 0]
    entry, document = body["data"][0], documents["docs/a.txt"]
    assert entry["tokens"] == document.n_tokens
    assert entry["segments"] == 1
    assert entry["model"] == served.fingerprint
    assert entry["bytes"] == {name: documents.size("docs/a.txt", name) for name in ("raw", "centred")}
    assert entry["artifacts"] == {
        name: [variant.artifact] for name, variant in document.segments[0].variants.items()
    }
    assert document.prefix_artifact
    assert entry["prefix"] == document.prefix_artifact.artifact
    assert entry["created"] == int(documents.committed("docs/a.txt"))


def test_a_broken_manifest_hides_no_other(client: TestClient, documents: Store) -> None:
    (documents.root / "manifests/docs/b.txt.json").write_text("{}")
    assert [d["name"] for d in client.get("/v1/documents").json()["data"]] == ["docs/a.txt", "docs/c.txt"]
    broken = client.get("/v1/documents/docs/b.txt")
    assert broken.status_code == 500
    assert str(documents.root) not in broken.text


def test_a_manifest_is_given_to_the_byte(client: TestClient, documents: Store) -> None:
    answer = client.get("/v1/documents/docs/a.txt")
    assert answer.content == (documents.root / "manifests/docs/a.txt.json").read_bytes()
    assert Document.from_bytes(answer.content, "") == documents["docs/a.txt"]
    assert answer.headers["etag"] == f'"{digest(answer.content)}"'
    known = {"If-None-Match": f'"x", W/{answer.headers["etag"]}'}
    assert client.get("/v1/documents/docs/a.txt", headers=known).status_code == 304


@pytest.mark.parametrize(
    "name", ["x", "..%2F..%2Fetc%2Fpasswd", "%00", "a%2F%2Fb", "docs", "x" * 300, "x%2F" * 2000 + "x", "%ff"]
)
def test_a_name_that_is_none_is_not_there(client: TestClient, name: str) -> None:
    answer = client.get(f"/v1/documents/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "document_not_found"


# Artifacts


def test_an_artifact_is_given_to_the_byte_with_ranges(client: TestClient, documents: Store) -> None:
    name, data = raw_of(documents)
    path = f"/v1/artifacts/{name}"
    answer = client.get(path)
    assert answer.content == data
    assert answer.headers["etag"] == f'"{name}"'
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))
    assert client.get(path, headers={"If-None-Match": f'"{name}"'}).status_code == 304

    for said, part in [("0-7", data[:8]), ("8-", data[8:]), ("-5", data[-5:]), ("3-99999999", data[3:])]:
        ranged = client.get(path, headers={"Range": f"bytes={said}"})
        assert (ranged.status_code, ranged.content) == (206, part)
        assert ranged.headers["content-range"].endswith(f"/{len(data)}")
    several = client.get(path, headers={"Range": "bytes=0-7,100-109"})
    assert several.status_code == 206
    assert several.headers["content-type"].startswith("multipart/byteranges")
    assert data[:8] in several.content
    assert data[100:110] in several.content
    same = {"Range": "bytes=0-7", "If-Range": f'"{name}"'}
    assert client.get(path, headers=same).status_code == 206
    assert client.get(path, headers=same | {"If-Range": f'"{NONE}"'}).content == data


@pytest.mark.parametrize(
    ("said", "status"),
    [("bytes=99999999-", 416), ("bytes=-0", 416), ("bytes=7-3", 400), ("lines=1-2", 400), ("bytes", 400)],
)
def test_a_range_that_cannot_be_is_refused_as_all_else_is(
    client: TestClient, documents: Store, said: str, status: int
) -> None:
    name, data = raw_of(documents)
    answer = client.get(f"/v1/artifacts/{name}", headers={"Range": said})
    assert answer.status_code == status
    assert "expected bytes=FIRST-LAST" in answer.json()["error"]["message"]
    assert answer.headers["content-range"] == f"bytes */{len(data)}"


def parts_of(answer: Any) -> dict[int, bytes]:
    """Of an answer to a request for several ranges: first byte → bytes, in their order."""
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    header = re.compile(rb"--%s\r\n.*?Content-Range: bytes (\d+)-(\d+)/\d+\r\n\r\n" % boundary, re.S)
    found, at = {}, 0
    while match := header.match(answer.content, at):
        first, last = map(int, match.groups())
        at = match.end() + last - first + 1
        found[first] = answer.content[match.end() : at]
        at += len(b"\r\n")
    assert answer.content[at:] == b"--%s--" % boundary
    return found


def test_some_tokens_of_all_layers_are_one_request(
    client: TestClient, documents: Store, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Of a model with as many layers and heads of keys and values as the embedded one has."""
    layers, heads, tokens = 30, 3, slice(100, 200)
    many = make_model(
        tmp_path / "many",
        num_hidden_layers=layers,
        num_key_value_heads=heads,
        num_attention_heads=6,
        hidden_size=48,
    )
    Path("long.txt").write_text("There is room for more than two hundred tokens here. " * 6)
    kvtool.prefill(["long.txt"], model=kvtool.load_model(many, device="cpu"), store=documents)
    path = f"/v1/artifacts/{raw_of(documents, 'long.txt')[0]}"

    began = client.get(path, headers={"Range": "bytes=0-131071"}).content
    size = int.from_bytes(began[:8], "little")
    header = json.loads(began[8 : 8 + size])
    wanted: list[tuple[int, int]] = []
    for layer in range(layers):
        for kind in ("keys", "values"):
            tensor = header[f"layers.{layer:04}.{kind}"]
            _, count, width = tensor["shape"]
            row = width * torch.float32.itemsize
            at = 8 + size + tensor["data_offsets"][0]
            wanted += [
                (at + (head * count + tokens.start) * row, at + (head * count + tokens.stop) * row - 1)
                for head in range(heads)
            ]
    said = "bytes=" + ",".join(f"{first}-{last}" for first, last in wanted)
    assert len(said) < limits.HEAD_BYTES // 4
    answer = client.get(path, headers={"Range": said})
    assert answer.status_code == 206
    parts = parts_of(answer)
    assert list(parts) == [first for first, _ in wanted]

    given = torch.frombuffer(bytearray(b"".join(parts.values())), dtype=torch.float32)
    given = given.view(layers, 2, heads, tokens.stop - tokens.start, -1)
    for layer, whole in zip(given, documents.read("long.txt").layers, strict=True):
        assert torch.equal(layer[0], whole.keys[:, tokens])
        assert torch.equal(layer[1], whole.values[:, tokens])


def test_more_ranges_than_are_answered_get_the_whole_file(client: TestClient, documents: Store) -> None:
    name, data = raw_of(documents)
    path, ranges = f"/v1/artifacts/{name}", [f"{2 * n}-{2 * n}" for n in range(limits.RANGES + 1)]
    answer = client.get(path, headers={"Range": f"bytes={','.join(ranges)}"})
    assert (answer.status_code, answer.content) == (200, data)
    answer = client.get(path, headers={"Range": f"bytes={','.join(ranges[1:])}"})
    assert answer.status_code == 206
    assert b"".join(parts_of(answer).values()) == data[2 : 2 * limits.RANGES + 2 : 2]


@pytest.mark.parametrize("kind", ["artifacts", "calibrations"])
@pytest.mark.parametrize("name", [NONE, "x", "G" * 64, "..%2F..%2Fkvtool-store.json"])
def test_what_is_no_digest_is_as_absent_as_an_unknown_one(client: TestClient, kind: str, name: str) -> None:
    answer = client.get(f"/v1/{kind}/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client.head(f"/v1/{kind}/{name}").status_code == 404


def test_a_calibration_is_given_to_the_byte(client: TestClient, calibrated: Calibration) -> None:
    answer = client.get(f"/v1/calibrations/{calibrated.digest}")
    assert digest(answer.content) == calibrated.digest
    assert answer.headers["etag"] == f'"{calibrated.digest}"'


# Lookup


def test_lookup_finds_the_longest_match(
    client: TestClient, documents: Store, served: kvtool.Model, texts: dict[str, str]
) -> None:
    ids = chat_tokens(served, [Message("user", texts["docs/a.txt"] + "\n\nHow many?")])
    found = client.post("/v1/lookup", json={"model": "served", "token_ids": ids}).json()
    whole = sum(len(part.token_ids) for part in documents.parts("docs/a.txt"))
    name, data = raw_of(documents)
    document = documents["docs/a.txt"]
    assert document.prefix_artifact
    assert found == {
        "document": "docs/a.txt",
        "segment": 0,
        "tokens": whole,
        "variants": {"raw": {"artifact": name, "bytes": len(data)}},
        "prefix": document.prefix_artifact.artifact,
    }
    assert client.post("/v1/lookup", json={"model": "served", "token_ids": [7] * 64}).json() is None


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "served"}, 400, "token_ids"),
        ({"model": "served", "token_ids": []}, 400, "token_ids"),
        ({"model": "served", "token_ids": [1, -1]}, 400, "token_ids.1"),
        ({"model": "served", "token_ids": [1 << 70]}, 400, "token_ids.0"),
        ({"model": "served", "token_ids": ["1"]}, 400, "token_ids.0"),
        ({"model": "served", "token_ids": [1], "x": 1}, 400, "x"),
        ({"model": "other", "token_ids": [1]}, 404, "model"),
        ([], 400, None),
    ],
)
def test_lookup_names_the_field_that_is_wrong(
    client: TestClient, body: Any, status: int, param: str | None
) -> None:
    answer = client.post("/v1/lookup", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


# Uploads


def test_an_artifact_that_is_what_it_says_is_kept(client: TestClient, documents: Store) -> None:
    name, data = raw_of(documents)
    there = documents.artifact_path(name)
    there.unlink()
    answer = client.put(f"/v1/artifacts/{name}", content=data)
    assert answer.status_code == 201
    assert answer.json() == {"digest": name, "bytes": len(data)}
    assert there.read_bytes() == data
    assert client.put(f"/v1/artifacts/{name}", content=iter([data[:9], data[9:]])).status_code == 200


def test_a_broken_one_is_mended(client: TestClient, documents: Store) -> None:
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
    client: TestClient, documents: Store, changed: Callable[[bytes], bytes]
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


def test_a_true_artifact_of_another_name_is_refused(client: TestClient, documents: Store) -> None:
    _, data = raw_of(documents)
    answer = client.put(f"/v1/artifacts/{NONE}", content=data)
    assert answer.status_code == 400
    assert "another artifact" in answer.json()["error"]["message"]
    assert client.put("/v1/artifacts/x", content=data).json()["error"]["param"] == "digest"


def test_an_artifact_follows_its_calibration(
    client: TestClient, documents: Store, calibrated: Calibration
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
    client: TestClient, documents: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)
    monkeypatch.setitem(body_limits.STREAMED, "/v1/artifacts/", len(data) - 1)
    for body in (data, iter([data[:100], data[100:]])):
        answer = client.put(f"/v1/artifacts/{name}", content=body)
        assert answer.status_code == 413
        assert "larger than" in answer.json()["error"]["message"]
    assert files(documents.root) == before
    monkeypatch.setitem(body_limits.STREAMED, "/v1/artifacts/", len(data))
    assert client.put(f"/v1/artifacts/{name}", content=data).status_code == 200


def test_a_full_disk_is_507(client: TestClient, documents: Store, monkeypatch: pytest.MonkeyPatch) -> None:
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
    client: TestClient, documents: Store, serving: Serving
) -> None:
    name, data = raw_of(documents)
    serving.tenants[""].uploads.total_tokens = 0
    answer = client.put(f"/v1/artifacts/{name}", content=data)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


def test_an_upload_that_trickles_is_given_up(serving: Serving, documents: Store) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)
    guard = body_limits.WholeBody(create_app(serving).router, most=limits.REQUEST_BYTES, seconds=0.05)
    sent: list[Any] = []

    async def trickle() -> Any:
        await asyncio.sleep(0.04)
        return {"type": "http.request", "body": data[:1], "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/v1/artifacts/{name}",
        "headers": [],
        "query_string": b"",
        "state": {"tenant": serving.tenants[""]},
    }
    with pytest.raises(Exception, match="slower than 262,144 bytes a second"):
        asyncio.run(guard(scope, trickle, send))
    assert sent == []
    assert files(documents.root) == before


def test_a_client_that_goes_away_leaves_nothing(serving: Serving, documents: Store) -> None:
    name, data = raw_of(documents)
    before = files(documents.root)
    messages: list[Any] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": data[:1000], "more_body": True},
    ]

    async def receive() -> Any:
        return messages.pop()

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/v1/artifacts/{name}",
        "headers": [],
        "query_string": b"",
        "state": {"tenant": serving.tenants[""]},
    }
    with pytest.raises(Exception, match="did not arrive"):
        asyncio.run(create_app(serving).router(scope, receive, send))
    assert files(documents.root) == before


def test_an_upload_may_not_claim_more_than_is_sensible(
    client: TestClient, documents: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = raw_of(documents)
    monkeypatch.setattr(limits, "ARTIFACT_TOKENS", 3)
    answer = client.put(f"/v1/artifacts/{name}", content=data)
    assert answer.status_code == 400
    assert "more than 3 tokens; nothing was kept" in answer.json()["error"]["message"]


# Two tenants


def headers_of(answer: Any) -> dict[str, str]:
    """Without those that are each request's own: its id, and how long a name is that the body repeats."""
    return {k: v for k, v in answer.headers.items() if k not in ("content-length", "x-request-id")}


def test_what_another_has_is_as_if_nobody_had_it(
    two: dict[str, TestClient], served: kvtool.Model, texts: dict[str, str]
) -> None:
    first, second = two["first"], two["second"]
    (entry, *_) = first.get("/v1/documents").json()["data"]
    assert second.get("/v1/documents").json()["data"] == []
    name, (artifact,) = entry["name"], entry["artifacts"]["raw"]
    ids = chat_tokens(served, [Message("user", texts[name])])
    assert first.post("/v1/lookup", json={"model": "served", "token_ids": ids}).json()["document"] == name
    assert second.post("/v1/lookup", json={"model": "served", "token_ids": ids}).json() is None

    for path, unknown, others in [
        ("/v1/documents/{}", "docs/z.txt", name),
        ("/v1/artifacts/{}", NONE, artifact),
        ("/v1/artifacts/{}", NONE, entry["prefix"]),
    ]:
        assert first.get(path.format(others)).status_code == 200
        of_none, of_another = (second.get(path.format(what)) for what in (unknown, others))
        assert of_none.status_code == of_another.status_code == 404
        assert of_none.text.replace(unknown, others) == of_another.text
        assert headers_of(of_none) == headers_of(of_another)
    data = first.get(f"/v1/artifacts/{artifact}").content
    assert second.put(f"/v1/artifacts/{artifact}", content=data).status_code == 201
    assert first.put(f"/v1/artifacts/{artifact}", content=data).status_code == 200
    assert second.get("/v1/documents", headers={"Authorization": "Bearer x"}).status_code == 401
