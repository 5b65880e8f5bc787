"""Cached contents over time: kept over a restart, and gone when they expire or are deleted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.server.app import create_app
from kvtool.server.cached_contents.worker import PrefillWorker
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS, chat, text_of
from tests.server.cached_contents.cached import LONG, contents_of, files, held_up, make, ready, until


def test_what_expires_is_gone(client: TestClient, service: Service, documents: LocalStore) -> None:
    before = files(documents)
    made = make(client, ttl="1.0s")
    ready(client, made)
    assert files(documents) > before
    time.sleep(1.1)
    assert client.get(f"/v1/{made['name']}").status_code == 404
    assert client.get("/v1/cachedContents").json() == {"cachedContents": []}
    assert "has expired" in chat(client, status=404, cached_content=made["name"])["error"]["message"]
    contents_of(client).changed.set()
    until(lambda: files(documents), lambda found: found == before)


def test_artifacts_that_others_use_stay(
    client: TestClient, service: Service, documents: LocalStore, texts: dict[str, str]
) -> None:
    before = files(documents)
    made = make(client, texts["docs/a.txt"])
    ready(client, made)
    assert client.delete(f"/v1/{made['name']}").json() == {}
    assert client.delete(f"/v1/{made['name']}").status_code == 404
    until(lambda: files(documents), lambda found: found == before)


def test_deletion_disturbs_no_answer(client: TestClient, service: Service, documents: LocalStore) -> None:
    made = make(client)
    ready(client, made)
    expected = text_of(chat(client, cached_content=made["name"]))
    contents = contents_of(client)
    with ThreadPoolExecutor(1) as pool:
        with held_up(service):
            answer = pool.submit(chat, client, cached_content=made["name"])
            until(lambda: contents._in_use.total(), bool)
            client.delete(f"/v1/{made['name']}")
            assert client.get(f"/v1/{made['name']}").status_code == 404
            contents.sweep()
            assert made["name"] in documents
        assert text_of(answer.result()) == expected
    contents.sweep()
    assert made["name"] not in documents


def test_deletion_ends_a_prefill(client: TestClient, service: Service, documents: LocalStore) -> None:
    with held_up(service):
        made = make(client, LONG)
        assert client.delete(f"/v1/{made['name']}").status_code == 200
    contents = contents_of(client)
    until(lambda: [*contents.directory.iterdir()], lambda left: not left)
    assert made["name"] not in documents


def test_a_restart_goes_on(served: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_pass = threading.Event()
    with monkeypatch.context() as patch:
        whole = PrefillWorker._pass

        def slow(self: PrefillWorker, record: Any, forward: Any) -> None:
            whole(self, record, forward)
            if record.tokens == len(LONG):
                one_pass.set()
                self._stopping.wait(60)

        patch.setattr(PrefillWorker, "_pass", slow)
        with TestClient(create_app(Service.over(tmp_path, served, LIMITS))) as client:
            done = make(client)
            ready(client, done)
            expected = chat(client, cached_content=done["name"])
            made = make(client, LONG)
            assert one_pass.wait(60)
    service = Service.over(tmp_path, served, LIMITS)
    with TestClient(create_app(service)) as client:
        assert ready(client, made)["createTime"] == made["createTime"]
        assert text_of(chat(client, cached_content=done["name"])) == text_of(expected)
        chat(client, cached_content=made["name"])
        contents = client.get("/v1/cachedContents").json()["cachedContents"]
        assert [content["name"] for content in contents] == [done["name"], made["name"]]
    # Once it is prefilled the text itself is kept no longer.
    assert not [path for path in files(LocalStore(tmp_path)) if b"Line 3: the harbour" in path.read_bytes()]


def test_another_model_refuses(
    client: TestClient, make_model: Callable[..., Path], documents: LocalStore, tmp_path: Path
) -> None:
    made = make(client)
    ready(client, made)
    other = kvtool.load_model(make_model(tmp_path / "served", seed=1), device="cpu")
    with TestClient(create_app(Service.over(documents.root, other, LIMITS))) as client:
        error = chat(client, status=400, cached_content=made["name"])["error"]
        assert "was made for served" in error["message"]
