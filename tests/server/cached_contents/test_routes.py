"""/v1/cachedContents: what may be asked, and of whose contents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool import limits
from kvtool.artifact.store_key import new_store_key
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Limits, Service
from kvtool.store.encrypt import encrypt
from kvtool.store.local import LocalStore
from tests.server.asking import QUESTION, chat
from tests.server.cached_contents.cached import TEXT, body, make, ready

NONE = f"cachedContents/{'0' * 44}"
"""A name that nothing has."""


def test_only_expiry_changes(client: TestClient) -> None:
    made = make(client, ttl="100s")
    path = f"/v1/{made['name']}"
    changed = client.patch(path, params={"updateMask": "ttl"}, json={"ttl": "7200s"}).json()
    assert changed["createTime"] == made["createTime"]
    assert changed["expireTime"] > made["expireTime"]
    when = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time.time() + 500))}.000000Z"
    assert client.patch(path, json={"expireTime": when}).json()["expireTime"] == when
    assert client.patch(path, json={"expire_time": when}).json()["expireTime"] == when
    for wrong, mask in (
        ({}, ""),
        ({"displayName": "x"}, ""),
        ({"ttl": "5s"}, "displayName"),
        ({"ttl": "0s"}, ""),
    ):
        answer = client.patch(path, params={"updateMask": mask} if mask else {}, json=wrong)
        assert answer.status_code == 400, wrong
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client.get(path).json()["expireTime"] == when


def test_pages(client: TestClient) -> None:
    names = [make(client, f"Text {n}.")["name"] for n in range(5)]
    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        page = client.get("/v1/cachedContents", params={"pageSize": 2, "pageToken": token}).json()
        pages.append([content["name"] for content in page["cachedContents"]])
        token = page.get("nextPageToken", "")
    assert pages == [names[:2], names[2:4], names[4:]]
    assert client.get("/v1/cachedContents", params={"pageSize": "x"}).status_code == 400


def test_there_may_not_be_too_many(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHED_CONTENTS", 1)
    make(client)
    error = client.post("/v1/cachedContents", json=body())
    assert error.status_code == 429
    assert error.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"model": "gemini-2.0"}, 404, "this server has 'served'"),
        ({"model": None}, 400, "model"),
        ({"contents": []}, 400, "contents"),
        ({"contents": [{"role": "model", "parts": [{"text": "x"}]}]}, 400, "contents.0.role"),
        ({"contents": [{"parts": [{"text": "x"}]}] * 2}, 400, "contents"),
        ({"contents": [{"parts": []}]}, 400, "contents.0.parts"),
        ({"contents": [{"parts": [{"inlineData": {}}]}]}, 400, "contents.0.parts.0"),
        ({"contents": [{"parts": [{"text": " \n"}]}]}, 400, "some text"),
        ({"contents": [{"parts": [{"text": ""}]}]}, 400, "some text"),
        ({"contents": [{"parts": [{"text": "x" * 1900}]}]}, 400, "contents: has more than"),
        ({"systemInstruction": {"parts": [{"text": "x<|end|>"}]}}, 400, "special token"),
        ({"systemInstruction": {"parts": [{"text": "x" * 2100}]}}, 400, "more than the 2,048 tokens"),
        ({"systemInstruction": {"parts": [{"text": "x" * 2040}]}}, 400, "systemInstruction"),
        ({"ttl": 3600}, 400, "ttl"),
        ({"ttl": "1h"}, 400, "ttl"),
        ({"ttl": "0s"}, 400, "ttl"),
        ({"ttl": "2592001s"}, 400, "30 days"),
        ({"expireTime": "tomorrow"}, 400, "expireTime"),
        ({"expireTime": "2020-01-01T00:00:00Z"}, 400, "expireTime"),
        ({"expireTime": "2020-01-01T00:00:00"}, 400, "expireTime"),
        ({"ttl": "5s", "expireTime": "2999-01-01T00:00:00Z"}, 400, "one of them"),
        ({"displayName": "x" * 129}, 400, "displayName"),
        ({"tools": []}, 400, "tools"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(client: TestClient, more: dict[str, Any], status: int, says: str) -> None:
    answer = client.post("/v1/cachedContents", json=body() | more)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert client.get("/v1/cachedContents").json() == {"cachedContents": []}


@pytest.mark.parametrize("id", ["x", "0" * 44, "..%2F..%2Fkvtool-store", "A" * 44, "%00", "é"])
def test_unknown_ids(client: TestClient, id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"/v1/cachedContents/{id}")
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_given_twice(client: TestClient) -> None:
    error = chat(client, status=400, cached_content="cachedContents/x", documents=["docs/a.txt"])["error"]
    assert error["param"] == "cached_content"
    chat(client, status=404, cached_content="docs/a.txt")
    chat(client, status=404, cached_content="../docs/a.txt")


def test_nobody_sees_anothers(served: kvtool.Model, tmp_path: Path) -> None:
    service = Service.over(tmp_path / "kv-store", served, Limits(memory=1 << 28), names={"anna", "bert"})
    tokens = {"anna" * 4: "anna", "bert" * 4: "bert"}
    with TestClient(create_app(service, tokens)) as anna:
        anna.headers["authorization"] = f"Bearer {'anna' * 4}"
        made = make(anna)
        ready(anna, made)
        hers = {"authorization": anna.headers["authorization"]}
        anna.headers["authorization"] = f"Bearer {'bert' * 4}"
        bert = anna
        assert bert.get("/v1/cachedContents").json() == {"cachedContents": []}
        unknown = bert.get(f"/v1/{NONE}")
        for method in ("GET", "DELETE"):
            answer = bert.request(method, f"/v1/{made['name']}")
            assert answer.status_code == 404
            assert answer.text.replace(made["name"], NONE) == unknown.text
        assert bert.patch(f"/v1/{made['name']}", json={"ttl": "9s"}).status_code == 404
        chat(bert, status=404, cached_content=made["name"])
        chat(bert, status=404, documents=[made["name"]])
        asked = chat(bert, f"{TEXT}\n\n{QUESTION}")
        assert asked["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert bert.get(f"/v1/{made['name']}", headers=hers).json()["state"] == "ACTIVE"


def test_several_parts_are_one_text(client: TestClient, service: Service) -> None:
    parts = [{"text": "One."}, {"text": "Two."}]
    made = client.post("/v1/cachedContents", json=body(contents=[{"parts": parts}])).json()
    assert made["progress"]["tokensTotal"] == len("One.\n\nTwo.")


def test_the_text_of_an_encrypted_store_s_contents_is_encrypted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = service.tenants[""].store
    assert isinstance(store, LocalStore)
    with TestClient(create_app(service)) as client:
        ready(client, make(client, systemInstruction={"parts": [{"text": "A secret word: xyzzy."}]}))
    (record,) = (store.root / "contents").glob("*.json")
    assert b"xyzzy" in record.read_bytes()
    key = new_store_key()
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", key.secret.hex())
    encrypt(store, key)
    assert b"xyzzy" not in record.read_bytes()
    again = Service.over(store.root, service.model, service.limits)
    with TestClient(create_app(again)) as client:
        (entry,) = client.get("/v1/cachedContents").json()["cachedContents"]
        make(client, systemInstruction={"parts": [{"text": "A secret word: xyzzy."}]})
        assert entry["name"].endswith(record.stem)
        assert not any(b"xyzzy" in path.read_bytes() for path in record.parent.glob("*.json"))
