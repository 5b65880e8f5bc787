"""LongRoPE: no answer of the server crosses the length at which every key would be rotated otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as t
from starlette.testclient import TestClient

import kvtool
from kvtool.ask import ask
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.engines.test_longrope import ORIGINAL, TEXT
from tests.engines.test_rope import LONG
from tests.families import SIZES, save
from tests.server.asking import LIMITS, cached_tokens, chat, text_of


def test_answers_are_those_of_ask_and_end_at_the_boundary(tmp_path: Path) -> None:
    config = t.Phi3Config(
        **SIZES | {"max_position_embeddings": 2048},
        original_max_position_embeddings=ORIGINAL,
        rope_parameters=LONG | {"original_max_position_embeddings": ORIGINAL},
    )
    model = kvtool.load_model(save(tmp_path / "served", config), device="cpu")
    (tmp_path / "a.md").write_text(TEXT[:70])
    store = LocalStore(tmp_path / "store")
    kvtool.prefill([tmp_path / "a.md"], model=model, store=store)
    expected = ask("Q?", "a.md", model, store, max_tokens=500)
    with TestClient(create_app(Service.over(store.root, model, LIMITS))) as client:
        asked: dict[str, Any] = {"content": "Q?", "documents": ["a.md"]}
        answer = chat(client, **asked, max_tokens=None)
        assert text_of(answer) == expected.text
        assert cached_tokens(answer) > 0
        assert answer["usage"]["total_tokens"] <= ORIGINAL
        refusal = chat(client, **asked, max_tokens=ORIGINAL, status=400)
        assert refusal["error"]["code"] == "context_length_exceeded"
