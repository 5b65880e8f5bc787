"""The proxy before a real ``vllm serve``: a stored blend is loaded for the documents that a chat names, and for nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from starlette.testclient import TestClient

import kvtool
from benchmarks.common.vllm import serve
from kvtool.ask import ask
from kvtool.blending.save import save_blend
from kvtool.model.conversation import Message
from kvtool.server.proxy.app import create_proxy
from kvtool.server.proxy.engine import Engine
from kvtool.server.proxy.prompts import Prompts
from kvtool.server.runtime.request import ConversationPrompt
from kvtool.store.local import LocalStore
from tests.connectors.vllm.conftest import Case
from tests.suites.engines.environments import can_compute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(can_compute("vllm")), reason=str(can_compute("vllm"))),
]

QUESTION = "What is this about?"
ASKED = ConversationPrompt([Message("user", QUESTION)], {})
SETS = [["bakery.md", "orchard.txt"], ["orchard.txt", "bakery.md"]]


def test_a_blend_is_loaded_by_its_documents_and_by_nothing_else(
    case: Callable[[str], Case], tmp_path: Path
) -> None:
    made = case("qwen3")
    store = LocalStore(shutil.copytree(made.store.root, tmp_path / "store"))
    save_blend("set", SETS[0], made.model, store)
    prompts = Prompts(store, made.model)
    tokens = [len(made.tokens(names[0])) for names in SETS]
    blended = len(kvtool.blend(store, SETS[0], made.model, recompute=0, separator="\n\n").token_ids)
    expected = ask(QUESTION, "set", made.model, store, max_tokens=16).text
    with (
        serve(made.directory, tmp_path, store=str(store.root)) as engine,
        TestClient(create_proxy(Engine(engine.url), prompts), "http://localhost") as client,
    ):

        def chat(**fields: Any) -> Any:
            body = {"model": "served", "temperature": 0, "max_tokens": 16, **fields}
            body["messages"] = [{"role": "user", "content": QUESTION}]
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        def cached(answer: Any) -> int:
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        first = chat(documents=SETS[0])
        assert cached(first) == blended
        assert first["choices"][0]["message"]["content"] == expected
        # By its own name, too: vLLM has its whole blocks by now, for all requests of this blend.
        named = chat(documents=["set"])
        assert tokens[0] < cached(named) <= blended
        assert named["choices"][0]["message"]["content"] == expected
        # In another order there is no blend: the first document alone is loaded.
        assert cached(chat(documents=SETS[1])) == tokens[1]
        # The same tokens without a name get no block of the blend.
        plain = engine.answer(prompts.after(SETS[0], ASKED).token_ids)
        assert plain.cached == tokens[0]
        assert client.get("/v1/models").json()["data"][0]["id"] == "served"
