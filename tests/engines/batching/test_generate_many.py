"""Requests side by side over one cache are answered as each would be alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import kvtool
from kvtool.engines import transformers as engine
from kvtool.engines.batching.generate_many import end_tokens, generate_many, logits_after
from kvtool.engines.generate import generate

BOUND = 1e-4
"""Of the logits, relative to the largest: another order of summation."""


@pytest.fixture
def ids() -> list[int]:
    return torch.randint(0, 256, (60,)).tolist()


def cached(model: kvtool.Model, ids: list[int]) -> kvtool.DocumentCache:
    cache = engine.new_cache(model, len(ids))
    engine.feed(model, ids, cache)
    cache.token_ids = torch.tensor(ids)
    return cache


@torch.no_grad()
def plain(model: kvtool.Model, ids: list[int], start: int) -> torch.Tensor:
    return model.model(torch.tensor([ids])).logits[0, start:].float()


def test_what_follows_is_scored_as_in_one_pass(family: kvtool.Model, ids: list[int]) -> None:
    cache = cached(family, ids[:40])
    logits, expected = logits_after(family, cache, ids[40:]), plain(family, ids, 40)
    assert (logits - expected).abs().max() < BOUND * expected.abs().max()
    assert cache.get_seq_length() == 40
    assert torch.equal(logits_after(family, cache, ids[40:]), logits)


def test_each_is_answered_as_if_it_were_alone(family: kvtool.Model, ids: list[int]) -> None:
    prompts, most = [ids[40:43], ids[43:57], ids[57:58]], [7, 3, 5]
    cache = cached(family, ids[:40])
    answers = generate_many(family, cache, prompts, most)
    assert cache.get_seq_length() == 40
    for prompt, answer, tokens in zip(prompts, answers, most, strict=True):
        alone = generate(family, [*ids[:40], *prompt], copy.deepcopy(cache), max_tokens=tokens)
        assert answer == [token for token in alone if token not in end_tokens(family)]


def test_more_prompts_than_a_pass_holds(
    tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch, ids: list[int]
) -> None:
    cache, prompts = cached(tiny, ids[:40]), [ids[n : n + 4] for n in range(40, 50)]
    together = generate_many(tiny, cache, prompts, [4] * 10)
    monkeypatch.setattr("kvtool.engines.batching.generate_many.PASS_TOKENS", 9)
    assert generate_many(tiny, cache, prompts, [4] * 10) == together
    assert generate_many(tiny, cache, [], []) == []


def test_a_row_sees_no_other_row(tiny: kvtool.Model, ids: list[int]) -> None:
    cache = cached(tiny, ids[:40])
    first = generate_many(tiny, cache, [ids[40:44], ids[44:50]], [6, 6])[0]
    assert first == generate_many(tiny, cache, [ids[40:44], ids[50:60]], [6, 6])[0]


def test_a_pruned_cache_goes_on_at_its_position(tiny: kvtool.Model, ids: list[int]) -> None:
    """Without its last ten tokens, but at the position after them: as if they had been masked."""
    short = cached(tiny, ids[:30])
    logits = logits_after(tiny, short, ids[40:], position=40)
    index = torch.arange(len(ids))
    visible = (index[None, :] <= index[:, None])[40:]
    visible[:, 30:40] = False
    whole = cached(tiny, ids[:40])
    with torch.no_grad():
        expected = tiny.model(
            torch.tensor([ids[40:]]),
            position_ids=torch.arange(40, len(ids))[None],
            attention_mask=visible[None, None],
            past_key_values=whole,
        ).logits[0]
    assert (logits - expected).abs().max() < BOUND * expected.abs().max()


def test_a_window_refuses_a_pruned_cache(model_of: Any, ids: list[int]) -> None:
    model = model_of("mistral")
    with pytest.raises(kvtool.KvtoolError, match="sliding window"):
        logits_after(model, cached(model, ids[:30]), ids[40:], position=40)
