"""Every family: documents blended with all tokens recomputed are a full prefill, and moved keys are where they belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kvtool
from kvtool.ask import ask_each
from kvtool.blending import drift
from kvtool.blending.layout import Cached, Text, lay_out
from kvtool.blending.policies import POLICIES
from kvtool.engines.batching.generate_many import generate_many
from kvtool.model.chat_template import prefix_of, question_tokens
from tests.caches import differences, full_prefill, same

TEXTS = {
    "a.txt": "The harbour lies to the north of the town, and seven ships are in it today.",
    "b.txt": "A loaf of rye bread costs three crowns at the baker's behind the mill.",
    "c.txt": "Keys and values of every token are kept, layer by layer, head by head.",
}
QUESTION = "How many ships are in the harbour?"

BOUND = 1e-5
"""The largest difference in float32, relative to the largest element of the tensor. Measured: 2.5e-6."""


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


def test_all_recomputed_is_a_full_prefill_to_the_bit(family: kvtool.Model, store: kvtool.Store) -> None:
    cache = kvtool.blend(store, list(store), family, recompute=1)
    assert same(cache, full_prefill(family, cache.token_ids))


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
        assert same(cache, alone)


def test_what_is_right_for_its_place_stays(family: kvtool.Model, store: kvtool.Store) -> None:
    first, *_ = sorted(store)
    own = store.load(first, family)
    cache = kvtool.blend(store, sorted(store), family, recompute=0.5, question=QUESTION)
    assert same(cache, own, slice(len(own.token_ids)))


def test_an_answer_is_that_of_a_full_prefill(family: kvtool.Model, store: kvtool.Store) -> None:
    cache = kvtool.blend(store, [f"{n}" for n in store], family, recompute=1)
    ids = torch.cat([cache.token_ids, torch.tensor([1, 2, 3])])[None]
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = family.model.generate(ids, **options)
    assert torch.equal(family.model.generate(ids, past_key_values=cache, **options), plain)


@pytest.mark.parametrize("policy", [name for name, policy in POLICIES.items() if not policy.parallel])
def test_every_policy_keeps_to_its_budget(
    policy: Any, family: kvtool.Model, store: kvtool.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tokens that changes are passed on to are not recomputed.
    monkeypatch.setattr(drift, "PART", 0.0)
    names = [*sorted(store), sorted(store)[0]]
    layout = lay_out(store, names, family)
    naive = kvtool.blend(store, names, family, policy="none")
    cache = kvtool.blend(store, names, family, policy=policy, recompute=0.2, question=QUESTION)
    last, naive_last = cache.layers[-1], naive.layers[-1]
    differ = (last.keys != naive_last.keys).any(-1), (last.values != naive_last.values).any(-1)
    changed = differ[0].any(1)[0] | differ[1].any(1)[0]
    share = POLICIES[policy].share
    budget = {None: -(-layout.n_document_tokens // 5), 0: 0, 1: len(layout.token_ids)}[share]
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
    for x, y in zip(naive.layers, cache.layers, strict=True):
        assert (x.keys - y.keys)[:, :, :n].abs().max() / y.keys.abs().max() < BOUND


def test_several_questions_are_answered_as_one_by_one(family: kvtool.Model, store: kvtool.Store) -> None:
    names = sorted(store)
    questions = ["How many ships?", "What does a loaf of rye bread cost?", "What is kept?"]
    answers = ask_each(questions, documents=names, model=family, store=store, max_tokens=6, separator="")
    cache = kvtool.blend(store, names, family, question=questions)
    assert answers.recomputed_tokens == cache.recomputed
    for question, text in zip(questions, answers.texts, strict=True):
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
    assert same(again, cache, slice(cache.layout.prefix_tokens, None))
    with pytest.raises(kvtool.KvtoolError, match=r"all\.txt: is in the store already"):
        cache.save(store, "all.txt", family)
    exact = kvtool.blend(store, names, family, recompute=1)
    exact.save(store, "exact.txt", family)
    blended, whole = (store.open(name) for name in ("all.txt", "exact.txt"))
    assert blended.meta["identity"] != whole.meta["identity"]
    assert (blended.is_exact, whole.is_exact) == (False, True)
