"""The longest cached beginning of token ids."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool import Store
from kvtool.model.conversation import Message, chat_tokens
from tests.server.store_api.stored import raw_of


def test_lookup_finds_the_longest_match(
    client: TestClient, documents: Store, served: kvtool.Model, texts: dict[str, str]
) -> None:
    ids = chat_tokens(served, [Message("user", texts["docs/a.txt"] + "\n\nHow many?")])
    match = client.post("/v1/lookup", json={"model": "served", "token_ids": ids}).json()
    whole = sum(len(part.token_ids) for part in documents.parts("docs/a.txt"))
    name, data = raw_of(documents)
    document = documents["docs/a.txt"]
    assert document.prefix_artifact
    assert match == {
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
