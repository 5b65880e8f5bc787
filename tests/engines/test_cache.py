"""A loaded cache does what transformers' own ``DynamicCache`` does, and knows its tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import kvtool
import kvtool.engines.cache
from kvtool.ask import ask
from kvtool.engines.sampling import Sampling
from kvtool.errors import UsageError
from kvtool.model.chat_template import document_tokens
from tests.caches import assert_close, full_prefill

TEXT = "What the cache holds is known: keys, values, and the tokens they stand for. " * 2
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
NAME = "docs/a.txt"


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt-oss", "deepseek-v3"])
def model(request: pytest.FixtureRequest, model_of: Any) -> Any:
    return model_of(request.param)


@pytest.fixture(scope="module")
def store(model: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("store")
    (root / "docs").mkdir()
    (root / NAME).write_text(TEXT)
    store = kvtool.Store(root / "store")
    kvtool.prefill([root / "docs"], model=model, store=store)
    return store


@pytest.fixture
def cache(model: kvtool.Model, store: kvtool.Store) -> Any:
    return store.load(NAME, model)


@pytest.fixture
def ids(model: kvtool.Model, cache: Any) -> Any:
    question = torch.tensor([document_tokens(model, "\n\nWhat is known?")])
    return torch.cat([cache.token_ids[None], question], 1)


def assert_generates_as_without(model: kvtool.Model, cache: Any, ids: Any, options: Any = GREEDY) -> None:
    """``generate`` over ``cache`` gives the tokens that it gives without a cache."""
    plain = model.model.generate(ids, **options)
    assert torch.equal(model.model.generate(ids, past_key_values=cache, **options), plain)


def test_it_stands_for_the_prefix_and_the_document(model: kvtool.Model, cache: Any) -> None:
    assert model.tokenizer.decode(cache.token_ids).endswith(TEXT)
    assert cache.token_ids[0] == model.tokenizer.bos_token_id
    assert cache.token_ids.dtype == torch.int64
    assert cache.get_seq_length() == len(cache.token_ids)


def test_generate_over_it(model: kvtool.Model, cache: Any, ids: Any) -> None:
    assert_generates_as_without(model, cache, ids)


@pytest.mark.parametrize("n", [1, 5])
def test_crop(model: kvtool.Model, cache: Any, n: Any) -> None:
    ids = cache.token_ids
    expected = full_prefill(model, ids)
    cache.crop(-n)
    expected.crop(-n)
    assert torch.equal(cache.token_ids, ids[:-n])
    assert_close(cache, expected)
    # Further tokens are written where the removed ones were.
    with torch.no_grad():
        a = model.model(ids[None, -n:], past_key_values=cache).logits
        b = model.model(ids[None, -n:], past_key_values=expected).logits
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_generate_after_crop_feeds_the_last_token_again(model: kvtool.Model, cache: Any) -> None:
    """Without a question: ``generate`` needs at least one token that is not in the cache."""
    ids = cache.token_ids[None]
    cache.crop(-1)
    assert_generates_as_without(model, cache, ids)


def test_crop_beyond_the_beginning_leaves_nothing(model: kvtool.Model, cache: Any, ids: Any) -> None:
    cache.crop(-10_000)
    assert (cache.get_seq_length(), len(cache.token_ids)) == (0, 0)
    assert_generates_as_without(model, cache, ids)


def test_crop_of_nothing(cache: Any) -> None:
    before = len(cache.token_ids)
    cache.crop(0)
    assert (cache.get_seq_length(), len(cache.token_ids)) == (before, before)


def test_a_positive_crop_is_refused_as_in_transformers(cache: Any) -> None:
    for each in (cache, DynamicCache(ddp_cache_data=[(torch.ones(1, 1, 3, 2),) * 2])):
        with pytest.raises(ValueError, match="crop"):
            each.crop(5)


def test_crop_keeps_the_tokens_that_it_was_loaded_with(model: kvtool.Model, cache: Any, ids: Any) -> None:
    """After an answer, cropping it away leaves the document, for the next question."""
    loaded = cache.token_ids
    first = model.model.generate(ids, past_key_values=cache, **GREEDY)
    assert torch.equal(cache.token_ids, loaded)
    cache.crop(len(loaded) - cache.get_seq_length())
    assert torch.equal(cache.token_ids, loaded)
    assert torch.equal(model.model.generate(ids, past_key_values=cache, **GREEDY), first)


def test_batches_are_repeated_selected_and_reordered(model: kvtool.Model, cache: Any) -> None:
    expected = full_prefill(model, cache.token_ids)
    more = torch.tensor([[10], [20], [30]])
    for each in (cache, expected):
        each.batch_repeat_interleave(3)
        with torch.no_grad():
            model.model(more, past_key_values=each)
        each.reorder_cache(torch.tensor([2, 0, 1]))
        each.batch_select_indices(torch.tensor([0, 2]))
        with torch.no_grad():
            model.model(more[:2], past_key_values=each)
    assert cache.layers[0].keys.shape[0] == 2
    assert_close(cache, expected)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}]
)
def test_beam_search(model: kvtool.Model, cache: Any, ids: Any, options: Any) -> None:
    options = {**GREEDY, "max_new_tokens": 8, "min_new_tokens": 8, **options}
    plain = model.model.generate(ids, **options)
    fresh = model.model.generate(ids, past_key_values=DynamicCache(), **options)
    assert torch.equal(fresh, plain)
    cache.batch_repeat_interleave(options["num_beams"])
    assert torch.equal(model.model.generate(ids, past_key_values=cache, **options), plain)


def test_several_sampled_sequences_with_a_seed(model: kvtool.Model, cache: Any, ids: Any) -> None:
    options = {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 3, "temperature": 0.7}
    torch.manual_seed(7)
    plain = model.model.generate(ids, **options)
    cache.batch_repeat_interleave(3)
    torch.manual_seed(7)
    assert torch.equal(model.model.generate(ids, past_key_values=cache, **options), plain)
    assert len({tuple(row.tolist()) for row in plain}) > 1


def test_deepcopies_are_independent(model: kvtool.Model, cache: Any, ids: Any) -> None:
    before = [layer.keys.clone() for layer in cache.layers]
    first, second = copy.deepcopy(cache), copy.deepcopy(cache)
    a = model.model.generate(ids, past_key_values=first, **GREEDY)
    first.layers[0].keys.zero_()
    first.crop(-7)
    assert torch.equal(model.model.generate(ids, past_key_values=second, **GREEDY), a)
    assert cache.get_seq_length() == len(cache.token_ids)
    assert all(torch.equal(x.keys, y) for x, y in zip(cache.layers, before, strict=True))
    assert torch.equal(model.model.generate(ids, past_key_values=cache, **GREEDY), a)


def tight(store: kvtool.Store, model: kvtool.Model) -> Any:
    """A cache with next to no room after the document."""
    cache = store.load(NAME, model)
    cache.fit(3)
    return cache


def test_growing_past_its_room(model: kvtool.Model, store: kvtool.Store, ids: Any) -> None:
    # By then the answer alone is longer than every sliding window.
    cache = tight(store, model)
    buffers = cache.layers[0]._buffers["keys"]
    assert_generates_as_without(model, cache, ids, GREEDY | {"max_new_tokens": 40, "min_new_tokens": 40})
    assert cache.layers[0]._buffers["keys"] is not buffers


def test_reset(model: kvtool.Model, cache: Any, ids: Any) -> None:
    cache.reset()
    assert (cache.get_seq_length(), len(cache.token_ids)) == (0, 0)
    assert_generates_as_without(model, cache, ids)


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_grad_mode_after_any_other(
    model: kvtool.Model, store: kvtool.Store, first: Any, then: Any
) -> None:
    # It moves to new buffers, which are inference tensors if that happens in inference mode.
    cache = tight(store, model)
    more = torch.arange(30, 45)[None]
    expected = full_prefill(model, torch.cat([cache.token_ids, more[0], more[0, :3]]))
    with first():
        model.model(more, past_key_values=cache)
    with then():
        model.model(more[:, :3], past_key_values=cache)
    assert_close(cache, expected)


def test_ask_is_repeatable_with_a_seed(model: kvtool.Model, store: kvtool.Store) -> None:
    options = {"documents": NAME, "model": model, "store": store, "max_tokens": 10}
    greedy = ask("Why?", **options)
    assert greedy.token_ids == ask("Why?", **options, cached=False).token_ids
    assert greedy.cached_tokens == len(store.load(NAME, model).token_ids)
    drawn = [Sampling(1.5, seed=seed) for seed in (1, 1, 2)]
    warm = [ask("Why?", **options, sampling=sampling).token_ids for sampling in drawn]
    assert warm[0] == warm[1] != warm[2]
    assert ask("Why?", **options, sampling=drawn[0], cached=False).token_ids == warm[0]


def test_a_question_that_does_not_fit_is_refused(model: kvtool.Model, store: kvtool.Store) -> None:
    with pytest.raises(UsageError, match="context of 1024"):
        ask("Why? " * 300, documents=NAME, model=model, store=store)
