"""Two tenants: what one has is missing to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.model.conversation import Message, chat_tokens
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS
from tests.server.store_api.stored import NONE

TOKENS = {"token-of-the-first": "first", "token-of-the-second": "second"}


@pytest.fixture
def two(served: kvtool.Model, documents: LocalStore, tmp_path: Path) -> Iterator[dict[str, TestClient]]:
    """Two tenants over one server; the documents are the first's."""
    root = tmp_path / "tenants"
    (root / "tenants").mkdir(parents=True)
    documents.root.rename(root / "tenants" / "first")
    service = Service.over(root, served, LIMITS, names=set(TOKENS.values()))
    app = create_app(service, TOKENS)
    with TestClient(app, raise_server_exceptions=False):
        yield {
            name: TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"})
            for token, name in TOKENS.items()
        }


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


def test_prompts_are_scored_without_what_another_has(
    two: dict[str, TestClient], served: kvtool.Model, texts: dict[str, str]
) -> None:
    ids = chat_tokens(served, [Message("user", texts["docs/a.txt"])])
    body = {"model": "served", "prompt": ids, "echo": True, "max_tokens": 1, "temperature": 0}
    cached, scored = [], []
    for client in two.values():
        answer = client.post("/v1/completions", json=body).json()
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0)
        scored.append(client.post("/v1/completions", json=body | {"logprobs": 1}).json()["choices"])
    assert cached == [True, False]
    assert scored[0] == scored[1]
    named = body | {"documents": ["docs/a.txt"], "logprobs": 1}
    assert [client.post("/v1/completions", json=named).status_code for client in two.values()] == [200, 404]
