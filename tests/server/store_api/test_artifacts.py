"""Artifacts and calibrations as they are, whole and in ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import kvtool
from kvtool import Store, limits
from kvtool.artifact.sealed import key_id_of
from kvtool.artifact.store_key import new_store_key
from kvtool.codecs import Calibration
from kvtool.digest import digest
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.encrypt import encrypt
from kvtool.store.local import LocalStore
from tests.server.asking import cached_tokens, chat
from tests.server.store_api.stored import NONE, raw_of


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

    for ranges, part in [("0-7", data[:8]), ("8-", data[8:]), ("-5", data[-5:]), ("3-99999999", data[3:])]:
        ranged = client.get(path, headers={"Range": f"bytes={ranges}"})
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
    ("ranges", "status"),
    [("bytes=99999999-", 416), ("bytes=-0", 416), ("bytes=7-3", 400), ("lines=1-2", 400), ("bytes", 400)],
)
def test_a_range_that_cannot_be_is_refused_as_all_else_is(
    client: TestClient, documents: Store, ranges: str, status: int
) -> None:
    name, data = raw_of(documents)
    answer = client.get(f"/v1/artifacts/{name}", headers={"Range": ranges})
    assert answer.status_code == status
    assert "expected bytes=FIRST-LAST" in answer.json()["error"]["message"]
    assert answer.headers["content-range"] == f"bytes */{len(data)}"


def parts_of(answer: Any) -> dict[int, bytes]:
    """Of an answer to a request for several ranges: first byte → bytes, in their order."""
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    header = re.compile(rb"--%s\r\n.*?Content-Range: bytes (\d+)-(\d+)/\d+\r\n\r\n" % boundary, re.S)
    parts, at = {}, 0
    while match := header.match(answer.content, at):
        first, last = map(int, match.groups())
        at = match.end() + last - first + 1
        parts[first] = answer.content[match.end() : at]
        at += len(b"\r\n")
    assert answer.content[at:] == b"--%s--" % boundary
    return parts


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
    ranges = "bytes=" + ",".join(f"{first}-{last}" for first, last in wanted)
    assert len(ranges) < limits.HEAD_BYTES // 4
    answer = client.get(path, headers={"Range": ranges})
    assert answer.status_code == 206
    parts = parts_of(answer)
    assert list(parts) == [first for first, _ in wanted]

    values = torch.frombuffer(bytearray(b"".join(parts.values())), dtype=torch.float32)
    values = values.view(layers, 2, heads, tokens.stop - tokens.start, -1)
    for layer, whole in zip(values, documents.read("long.txt").layers, strict=True):
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


def test_an_encrypted_store_sends_what_it_has_encrypted(
    documents: LocalStore, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = raw_of(documents)
    key = new_store_key()
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", key.secret.hex())
    encrypt(documents, key)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        path = f"/v1/artifacts/{name}"
        assert client.get(path).content == data
        assert client.head(path).headers["content-length"] == str(len(data))
        part = client.get(path, headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, data[1000:2000])
        parts = client.get(path, headers={"Range": "bytes=0-9,100-199,500-"})
        assert all(data[a:b] in parts.content for a, b in ((0, 10), (100, 200), (500, None)))
        assert client.get(path, headers={"Range": "bytes=99999999-"}).status_code == 416
        documents.artifact_path(name).unlink()
        assert client.put(path, content=data).json() == {"digest": name, "bytes": len(data)}
        assert key_id_of(documents.artifact_path(name)) == key.id
        assert cached_tokens(chat(client, documents=["docs/a.txt"])) > 0
