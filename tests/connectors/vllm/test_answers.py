"""A real ``vllm serve`` answers over a store's caches as it answers without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from benchmarks.common.vllm import ANSWER_TOKENS, Engine
from benchmarks.common.vllm import serve as serve_any
from kvtool.engines.generate import generate
from tests.connectors.shown import ANSWERS, shown
from tests.connectors.vllm.conftest import Case, zeroed
from tests.connectors.vllm.models import FAMILIES, MODELS
from tests.suites.engines.environments import can_compute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(can_compute("vllm")), reason=str(can_compute("vllm"))),
]

QUESTIONS = [
    "\n\nWhat is this about?",
    "\n\nSum it up in a sentence: ",
    "\n\nWho is named in it?",
    "\n\nIn short:",
    "\n\nThe year in it is",
]
LLAMA = "Llama (SmolLM2)"

NUMERICAL = 0.01
"""A difference of logits that other sums of the same products explain, in float32."""

LETTERS = ["A", "7", "?", "z", "\n"]
"""Questions of one token each: all that vLLM can compute after a latent cache on a CPU."""


def serve(model: Path, folder: Path, **settings: Any) -> AbstractContextManager[Engine]:
    """``vllm serve`` without compiling, which takes longer than these tests."""
    return serve_any(model, folder, "--enforce-eager", **settings)


@pytest.fixture(params=list(MODELS))
def tiny_case(request: pytest.FixtureRequest, case: Callable[[str], Case]) -> tuple[str, Case]:
    return request.param, case(request.param)


def test_tiny_models(tiny_case: tuple[str, Case], tmp_path: Path) -> None:
    name, made = tiny_case
    prompts = made.prompts(LETTERS if name == "deepseek" else QUESTIONS)
    assert len(prompts) == 20
    with serve(made.directory, tmp_path) as cold:
        expected = [cold.answer(prompt) for prompt in prompts]
    with serve(made.directory, tmp_path, store=str(made.store.root)) as engine:
        answers = [engine.answer(prompt) for prompt in prompts]
        counted = engine.metrics()
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    # Beyond whole blocks of an earlier request, only what a store gave can have been cached.
    n_tokens = [len(made.tokens(document)) for document in made.store]
    assert [answer.cached for answer in answers[: len(n_tokens)]] == n_tokens
    assert counted["hits"] >= len(n_tokens)
    assert counted["loads"] == counted["hits"]
    assert "failures" not in counted or not counted["failures"]
    assert counted["tokens"] >= sum(n_tokens)
    shown("vllm", FAMILIES[name], "raw", by=ANSWERS)


def test_zeros_give_nonsense(case: Callable[[str], Case], tmp_path: Path) -> None:
    made = case("qwen3")
    prompts = made.prompts(QUESTIONS[:2])
    store = zeroed(made, tmp_path / "zeros")
    with serve(made.directory, tmp_path) as cold:
        expected = [cold.answer(prompt) for prompt in prompts]
    with serve(made.directory, tmp_path, store=str(store.root)) as engine:
        answers = [engine.answer(prompt) for prompt in prompts]
    assert all(answer.cached for answer in answers)
    differing = sum(a.token_ids != b.token_ids for a, b in zip(answers, expected, strict=True))
    assert differing > len(prompts) / 2


def test_the_embedded_model(embedded_case: Case, tmp_path: Path) -> None:
    made = embedded_case
    prompts = made.prompts(QUESTIONS)
    with serve(made.directory, tmp_path) as cold:
        expected = [cold.answer(prompt) for prompt in prompts]
    with serve(made.directory, tmp_path, store=str(made.store.root), variant="raw") as engine:
        answers = [engine.answer(prompt) for prompt in prompts]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    assert all(answer.cached for answer in answers)
    shown("vllm", LLAMA, "raw", by=ANSWERS)


@pytest.mark.parametrize("variant", ["kivi", "klt"])
def test_compressed_variants_answer_as_kvtool_does(embedded_case: Case, tmp_path: Path, variant: str) -> None:
    made = embedded_case
    documents = [name for _ in QUESTIONS for name in made.store]
    prompts = made.prompts(QUESTIONS)
    # Every token of a document comes from the variant, also those after the last whole block that two requests share.
    options = {"store": str(made.store.root), "variant": variant, "min_tokens": 1}
    with serve(made.directory, tmp_path, **options) as engine:
        answers = [engine.answer(prompt) for prompt in prompts]
    assert all(answer.cached for answer in answers)
    for document, prompt, answer in zip(documents, prompts, answers, strict=True):
        own = own_answer(made, document, prompt, variant)
        assert len(own) == ANSWER_TOKENS or own[-1] == made.model.tokenizer.eos_token_id
        if (first := first_difference(own, answer.token_ids)) is not None:
            gap = logit_gap(
                made, document, prompt, variant, own[:first], (own[first], answer.token_ids[first])
            )
            assert gap < NUMERICAL, (document, prompt[-8:], own, answer.token_ids)
    shown("vllm", LLAMA, variant, by=ANSWERS)


def own_answer(made: Case, document: str, prompt: list[int], variant: str) -> list[int]:
    """The answer that kvtool generates over the same cache; it ends with the end token."""
    cache = made.store.load(document, made.model, variant)
    return generate(made.model, prompt, cache, max_tokens=ANSWER_TOKENS)


def first_difference(own: list[int], answer: tuple[int, ...]) -> int | None:
    pairs = enumerate(zip(own, answer, strict=False))
    return next((index for index, (a, b) in pairs if a != b), None)


@torch.no_grad()
def logit_gap(
    made: Case, document: str, prompt: list[int], variant: str, common: list[int], tokens: tuple[int, int]
) -> float:
    """How far apart the two tokens' logits are after the prompt and ``common``, over the variant's cache."""
    cache = made.store.load(document, made.model, variant)
    rest = torch.tensor([[*prompt, *common][cache.get_seq_length() :]])
    logits = made.model.model(rest, past_key_values=cache).logits[0, -1]
    return float(abs(logits[tokens[0]] - logits[tokens[1]]))
