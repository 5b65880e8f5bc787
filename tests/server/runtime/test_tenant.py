"""Two tenants: what one has cached is to the other as if nobody had it, in content, in usage and in what is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import models

import kvtool
from kvtool.model import conversation
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS, cached_tokens, post_chat

TOKENS = {"a-token-of-the-first": "first", "a-token-of-the-second": "second"}
FIRST, SECOND = ({"Authorization": f"Bearer {token}"} for token in TOKENS)


@pytest.fixture
def service(served: kvtool.Model, documents: LocalStore) -> Service:
    """The first has ``documents``, the second has nothing."""
    shutil.copytree(documents.root, "stores/tenants/first")
    root = documents.root.parent / "stores"
    return Service.over(root, served, LIMITS, names=list(TOKENS.values()), loading=LoadOptions("raw"))


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, TOKENS), raise_server_exceptions=False) as client:
        yield client


def chat(client: TestClient, who: dict[str, str], content: str, **more: Any) -> Any:
    return post_chat(client, content, headers=who, **more)


def test_a_prompt_hits_what_is_its_own_only(
    client: TestClient, service: Service, texts: dict[str, str]
) -> None:
    content = f"{texts['docs/c.txt']}\n\nWhat is kept?"
    hit, miss = chat(client, FIRST, content).json(), chat(client, SECOND, content).json()
    assert cached_tokens(hit) >= len(texts["docs/c.txt"])
    assert cached_tokens(miss) == 0
    assert hit["choices"][0]["message"] == miss["choices"][0]["message"]
    # The second's request was worked on as if the first were not there: that is what its time depends on.
    before = service.metrics.hits._value.get(), service.memory.used
    assert chat(client, SECOND, content).json()["usage"] == miss["usage"]
    assert (service.metrics.hits._value.get(), service.memory.used) == before


def test_documents_of_another_are_as_if_there_were_none(client: TestClient) -> None:
    known, unknown = (chat(client, SECOND, "?", documents=[name]) for name in ("docs/a.txt", "docs/none"))
    assert known.status_code == unknown.status_code == 404
    assert known.text.replace("docs/a.txt", "docs/none") == unknown.text
    assert chat(client, FIRST, "?", documents=["docs/a.txt"]).status_code == 200
    assert client.get("/v1/documents", headers=SECOND).json()["data"] == []
    assert len(client.get("/v1/documents", headers=FIRST).json()["data"]) == 3


def test_the_same_text_is_cached_for_each_apart(client: TestClient, texts: dict[str, str]) -> None:
    """Once the second has the text too, its cache is its own: the first's going away takes nothing from it."""
    content = f"{texts['docs/c.txt']}\n\nWhat is kept?"
    body = {"model": "served", "contents": [{"role": "user", "parts": [{"text": texts["docs/c.txt"]}]}]}
    made = client.post("/v1/cachedContents", json=body, headers=SECOND).json()
    while (now := client.get(f"/v1/{made['name']}", headers=SECOND).json())["state"] == "PROCESSING":
        pass
    assert now["state"] == "ACTIVE"
    assert client.get(f"/v1/{made['name']}", headers=FIRST).status_code == 404
    shutil.rmtree("stores/tenants/first/manifests")
    answer = chat(client, SECOND, "What is kept?", cached_content=made["name"])
    assert cached_tokens(answer.json()) > 100
    assert chat(client, FIRST, content).status_code == 200


def test_words_are_forgotten(service: Service) -> None:
    """How fast a tokenizer is would tell which words another tenant has sent: benchmarks/tenants.py."""
    tokenizer = service.model.text_tokenizer
    before = tokenizer("Seven ships are in the harbour.").input_ids
    conversation.forget_words(service.model)
    assert tokenizer("Seven ships are in the harbour.").input_ids == before
    for remembering in (models.BPE(), models.Unigram()):
        assert hasattr(remembering, "_resize_cache"), "what forget_words does is called otherwise now"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic a-token-of-the-first", "a-token-of-the-first"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/documents", "/v1/none", "/metrics", "/v1/stats"])
def test_who_has_no_token_gets_nothing(client: TestClient, header: str, path: str) -> None:
    answer = client.get(path, headers={"Authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "a-token" not in answer.text
