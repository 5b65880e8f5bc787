"""LongRoPE: prefix, document, question and answer stay on one side of the original context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as t

import kvtool
from kvtool.ask import ask, ask_each
from kvtool.errors import UsageError
from kvtool.prefilling.prefill import prefill
from tests.engines.test_rope import LONG
from tests.families import MIXED

ORIGINAL = 160
TEXT = "Item 4 costs 3 crowns. " * 20


@pytest.fixture(scope="module")
def phi(save_model: Any, sizes: Any, tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    config = t.Phi3Config(
        **sizes | {"max_position_embeddings": 2048},
        original_max_position_embeddings=ORIGINAL,
        rope_parameters=LONG | {"original_max_position_embeddings": ORIGINAL},
    )
    return kvtool.load_model(save_model(tmp_path_factory.mktemp("phi"), config))


@pytest.fixture(scope="module")
def store(phi: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> kvtool.Store:
    root = tmp_path_factory.mktemp("store")
    (root / "long.md").write_text(TEXT)
    (root / "short.md").write_text(TEXT[:70])
    store = kvtool.Store(root / "store")
    assert prefill([root / "long.md", root / "short.md"], model=phi, store=store).problems == []
    return store


def test_the_context_is_that_of_the_short_factors(phi: kvtool.Model, model_of: Any) -> None:
    assert phi.context == ORIGINAL
    assert model_of("llama3-rope").context == 1024, "llama3 scaling does not depend on the length"


def test_factors_by_kind_of_layer_are_looked_at(sizes: Any, tmp_path: Path) -> None:
    kinds = {"full_attention": LONG, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    options = {"head_dim": 8, "layer_types": MIXED, "rope_parameters": kinds}
    config = t.Gemma3TextConfig(**sizes | options)
    config.save_pretrained(tmp_path / "model")
    assert kvtool.load_model(tmp_path / "model").context == LONG["original_max_position_embeddings"]


def test_long_documents_are_cut(store: kvtool.Store) -> None:
    segments = store["long.md"].segments
    assert len(segments) > 2
    assert all(segment.n_tokens < ORIGINAL for segment in segments)


@pytest.mark.parametrize("question", ["Q?", "A question that needs more of the room that there is?"])
def test_answers_end_where_the_factors_change(question: str, phi: kvtool.Model, store: kvtool.Store) -> None:
    answers = [
        ask(question, "short.md", phi, store, max_tokens=500, cached=cached) for cached in (True, False)
    ]
    assert answers[0].token_ids == answers[1].token_ids
    ended = answers[0].token_ids[-1] == 257
    assert ended or answers[0].prompt_tokens + len(answers[0].token_ids) == ORIGINAL
    several = ask_each([question, "x"], "short.md", phi, store, max_tokens=500)
    assert several.texts[0] == answers[0].text


def test_a_question_across_the_boundary_is_refused(phi: kvtool.Model, store: kvtool.Store) -> None:
    with pytest.raises(UsageError, match=rf"context of {ORIGINAL}"):
        ask("x" * ORIGINAL, "short.md", phi, store)
