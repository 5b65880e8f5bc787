"""A store with a quota under a running server: room is made, and no request fails for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.documents.load import NamedBytes
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from kvtool.store.room import quota
from kvtool.store.room.make_room import make_room, stored_bytes
from kvtool.store.room.rules import Rules
from kvtool.store.transfer.push import push
from tests.server.asking import LIMITS, cached_tokens, chat, chat_body
from tests.server.cached_contents.cached import make, ready, until
from tests.server.conftest import RAW_ONLY
from tests.server.store_api.stored import raw_of

GUIDE = "Row {0} of the harbour costs {0} crowns.\n"


@pytest.fixture
def limit(documents: LocalStore) -> int:
    """As many bytes as the documents take."""
    return stored_bytes(documents)


@pytest.fixture
def limited(
    served: kvtool.Model, documents: LocalStore, limit: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A server whose store is full."""
    monkeypatch.setattr(quota, "COUNT_SECONDS", 0.05)
    service = Service.over(documents.root, served, LIMITS, quotas={"": limit}, loading=RAW_ONLY)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def test_no_request_fails_while_the_store_is_filled_past_its_quota(
    limited: TestClient,
    documents: LocalStore,
    served: kvtool.Model,
    limit: int,
    texts: dict[str, str],
    tmp_path: Path,
) -> None:
    rows = {f"row/{number}.txt": GUIDE.format(number) for number in range(12)}
    other = LocalStore(tmp_path / "other")
    files = [NamedBytes(name, text.encode()) for name, text in rows.items()]
    kvtool.prefill(files, model=served, store=other)
    documents.pins.add("docs/a.txt")
    filled = threading.Event()

    def fill() -> None:
        for _ in range(3):
            push(other, documents.root)
        filled.set()

    writer = threading.Thread(target=fill)
    writer.start()
    answers = 0
    while not filled.is_set() or answers < 5:
        assert cached_tokens(chat(limited, documents=["docs/a.txt"])) > 0
        # What a prompt begins with may be gone by the time it is loaded.
        for text in (*texts.values(), rows["row/3.txt"], rows["row/9.txt"]):
            chat(limited, text)
        answers += 1
    writer.join()
    make_room(documents, Rules(max_bytes=limit), stray_seconds=60)
    assert "docs/a.txt" in documents
    assert stored_bytes(documents) <= limit
    assert 2 < len(documents) < 15
    for name in documents:
        documents.open(name).verify()


def test_a_document_that_is_being_answered_from_stays(documents: LocalStore, limited: TestClient) -> None:
    body = chat_body(documents=["docs/b.txt"], stream=True)
    with limited.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        make_room(documents, Rules(max_bytes=0))
        assert "docs/a.txt" not in documents
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_uploads_make_room_until_all_is_pinned(limited: TestClient, documents: LocalStore) -> None:
    name, data = raw_of(documents)
    documents.remove("docs/a.txt")
    documents.artifact_path(name).unlink()
    assert _put(limited, name, data).status_code == 201
    for document in documents:
        documents.pins.add(document)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quota, "STRAY_SECONDS", 3600.0)
        refused = _put(limited, "0" * 64, b"x" * (len(data) * 2))
    assert refused.status_code == 507
    # Of what comes in pieces it is not known how much it will be.
    assert limited.put(f"/v1/artifacts/{'0' * 64}", content=iter([data])).status_code == 411
    assert refused.json()["error"]["code"] == "quota_exceeded"
    assert str(documents.root) not in refused.text
    assert sorted(documents) == ["docs/b.txt", "docs/c.txt"]


def _put(client: TestClient, name: str, data: bytes) -> Any:
    return client.put(f"/v1/artifacts/{name}", content=data)


def test_cached_contents_are_pinned_until_they_are_deleted(
    limited: TestClient, documents: LocalStore
) -> None:
    name = ready(limited, make(limited))["name"]
    assert name in documents.pins
    make_room(documents, Rules(max_bytes=0))
    assert list(documents) == [name]
    limited.delete(f"/v1/{name}")
    until(lambda: [*documents, *documents.pins], lambda names: not names)
