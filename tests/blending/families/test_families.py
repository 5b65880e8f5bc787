"""Every family: documents blended with all tokens recomputed are a full prefill, and moved keys are where they belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import kvtool
from kvtool.ask import ask_each
from kvtool.blending.layout import Cached, Text, lay_out
from kvtool.blending.policies import POLICIES
from kvtool.engines.batching.generate_many import generate_many
from kvtool.model.chat_template import prefix_of, question_tokens

TEXTS = {
    "a.txt": "The harbour lies to the north of the town, and seven ships are in it today.",
    "b.txt": "A loaf of rye bread costs three crowns at the baker's behind the mill.",
    "c.txt": "Keys and values of every token are kept, layer by layer, head by head.",
}
QUESTION = "How many ships are in the harbour?"

BOUND = 1e-5
"""Largest difference in float32, relative to the largest element of the tensor. Measured: 2.5e-6."""


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def make(model: kvtool.Model, **options: Any) -> kvtool.Store:
        folder = tmp_path_factory.mktemp("documents")
        for name, text in TEXTS.items():
            (folder / name).write_text(text)
        store = kvtool.Store(folder / "store")
        kvtool.prefill([folder / name for name in TEXTS], model=model, store=store, **options)
        return store

    return make


@pytest.fixture(scope="module")
def store(family: kvtool.Model, store_of: Any) -> kvtool.Store:
    return store_of(family)


def full_prefill(model: kvtool.Model, token_ids: torch.Tensor) -> DynamicCache:
    """What transformers alone makes of them; without a config it keeps what is outside of a layer's window too."""
    cache = DynamicCache()
    with torch.no_grad():
        model.model(token_ids[None], past_key_values=cache, use_cache=True)
    return cache


def differences(cache: Any, expected: Any) -> list[float]:
    return [
        float((x - y).abs().max() / y.abs().max().clamp(min=1e-30))
        for a, b in zip(cache.layers, expected.layers, strict=True)
        for x, y in ((a.keys, b.keys), (a.values, b.values))
    ]


def test_all_recomputed_is_a_full_prefill_to_the_bit(family: kvtool.Model, store: kvtool.Store) -> None:
    cache = kvtool.blend(store, list(store), family, recompute=1)
    expected = full_prefill(family, cache.token_ids)
    for mine, other in zip(cache.layers, expected.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


def test_all_tokens_chosen_is_a_full_prefill(family: kvtool.Model, store: kvtool.Store) -> None:
    """The way of a few tokens, taken with all of them."""
    cache = kvtool.blend(store, list(store), family, recompute=0.999999, policy="even")
    assert max(differences(cache, full_prefill(family, cache.token_ids))) < BOUND


def test_keys_are_moved_to_where_a_prefill_puts_them(family: kvtool.Model, store: kvtool.Store) -> None:
    """Layer 0 sees no other token: moved, its cache is that of a full prefill."""
    names = sorted(store, reverse=True)
    cache = kvtool.blend(store, names, family, recompute=0)
    assert max(differences(cache, full_prefill(family, cache.token_ids))[:2]) < BOUND


def test_one_document_is_its_own_cache(family: kvtool.Model, store: kvtool.Store) -> None:
    (name, *_) = store
    alone = store.load(name, family)
    for recompute in (0, 0.15, 1):
        cache = kvtool.blend(store, [name], family, recompute=recompute, question=QUESTION)
        assert torch.equal(cache.token_ids, alone.token_ids)
        assert all(
            torch.equal(x.keys, y.keys) and torch.equal(x.values, y.values)
            for x, y in zip(cache.layers, alone.layers, strict=True)
        )


def test_what_is_right_for_its_place_stays(family: kvtool.Model, store: kvtool.Store) -> None:
    first, *_ = sorted(store)
    own = store.load(first, family)
    cache = kvtool.blend(store, sorted(store), family, recompute=0.5, question=QUESTION)
    n = len(own.token_ids)
    assert all(torch.equal(x.keys[:, :, :n], y.keys) for x, y in zip(cache.layers, own.layers, strict=True))


def test_an_answer_is_that_of_a_full_prefill(family: kvtool.Model, store: kvtool.Store) -> None:
    cache = kvtool.blend(store, [f"{n}" for n in store], family, recompute=1)
    ids = torch.cat([cache.token_ids, torch.tensor([1, 2, 3])])[None]
    plain = family.model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(
        family.model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False), plain
    )


@pytest.mark.parametrize("policy", [name for name, policy in POLICIES.items() if not policy.parallel])
def test_every_policy_keeps_to_its_budget(policy: Any, family: kvtool.Model, store: kvtool.Store) -> None:
    names = [*sorted(store), sorted(store)[0]]
    layout = lay_out(store, names, family)
    naive = kvtool.blend(store, names, family, policy="none")
    cache = kvtool.blend(store, names, family, policy=policy, recompute=0.2, question=QUESTION)
    last = [(x.keys, x.values) for x in (cache.layers[-1], naive.layers[-1])]
    (keys, values), (naive_keys, naive_values) = last
    changed = (keys != naive_keys).any(-1).any(1)[0] | (values != naive_values).any(-1).any(1)[0]
    share = POLICIES[policy].share
    budget = (
        round(len(layout.token_ids))
        if share == 1
        else -(-layout.n_document_tokens // 5)
        if share is None
        else 0
    )
    if policy == "cacheblend-gradual":
        # Of three layers the last is one that is compared at.
        budget *= 2
    assert int(changed.sum()) <= budget
    if share is None:
        assert not changed[layout.exact].any()
        assert int(changed.sum()) >= 0.4 * budget


def test_plain_text_has_no_cache_and_is_always_computed(family: kvtool.Model, store: kvtool.Store) -> None:
    a, b, _ = sorted(store)
    cache = kvtool.blend(store, [a, Text(" and then "), Cached(b)], family, recompute=0.999999, policy="even")
    assert " and then " in family.tokenizer.decode(cache.token_ids)
    assert max(differences(cache, full_prefill(family, cache.token_ids))) < BOUND
    naive = kvtool.blend(store, [a, Text(" and then "), b], family, recompute=0)
    n = len(store.load(a, family).token_ids) + len(" and then ")
    assert (
        max(
            float((x.keys - y.keys)[:, :, :n].abs().max() / y.keys.abs().max())
            for x, y in zip(naive.layers, cache.layers, strict=True)
        )
        < BOUND
    )


def test_several_questions_are_answered_as_one_by_one(family: kvtool.Model, store: kvtool.Store) -> None:
    names, questions = (
        sorted(store),
        ["How many ships?", "What does a loaf of rye bread cost?", "What is kept?"],
    )
    found = ask_each(questions, documents=names, model=family, store=store, max_tokens=6, separator="")
    cache = kvtool.blend(store, names, family, question=questions)
    assert found.recomputed_tokens == cache.recomputed
    for question, text in zip(questions, found.texts, strict=True):
        ids = question_tokens(family, prefix_of(family), question)
        (alone,) = generate_many(family, cache, [ids], [6])
        assert family.tokenizer.decode(alone, skip_special_tokens=True) == text


def test_a_blend_is_kept_as_a_document(family: kvtool.Model, store_of: Any) -> None:
    store = store_of(family)
    names = sorted(store)
    cache = kvtool.blend(store, names, family, recompute=0.3, question=QUESTION)
    cache.save(store, "all.txt", family)
    again = store.load("all.txt", family)
    assert torch.equal(again.token_ids, cache.token_ids)
    start = cache.layout.prefix_tokens
    assert all(
        torch.equal(x.keys[:, :, start:], y.keys[:, :, start:])
        for x, y in zip(again.layers, cache.layers, strict=True)
    )
    with pytest.raises(kvtool.KvtoolError, match=r"all\.txt: is in the store already"):
        cache.save(store, "all.txt", family)
    exact = kvtool.blend(store, names, family, recompute=1)
    exact.save(store, "exact.txt", family)
    blended, whole = (store.open(name) for name in ("all.txt", "exact.txt"))
    assert blended.meta["identity"] != whole.meta["identity"]
    assert (blended.is_exact, whole.is_exact) == (False, True)
