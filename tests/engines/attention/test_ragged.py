"""Caches whose heads hold different tokens, against dense ones under a mask for each head."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as t
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gpt_oss import modeling_gpt_oss

import kvtool
from kvtool.codecs import Geometry, LayerGeometry
from kvtool.codecs.recipe_registry import recipes
from kvtool.engines.attention.cache_attention import cache_attention, refuse_unreadable
from kvtool.engines.attention.override import family_attention
from kvtool.engines.attention.query import query_attention
from kvtool.engines.attention.ragged import softmax_attention
from kvtool.engines.batching.generate_many import generate_many, logits_after
from kvtool.engines.batching.multi_cache import feed_batches
from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.engines.cache import ROOM, STEP, DocumentCache, ParallelEncoding
from kvtool.engines.generate import generate
from kvtool.engines.kv import slice_kv
from kvtool.engines.ragged import RaggedLayer, UniformLayer
from kvtool.engines.stage_inputs import refuse_unmet
from kvtool.errors import ModelError, UsageError
from kvtool.kernels.dispatch import Packed
from tests.pruned import PREFIX, dense_cache, hiding, keep_some, prune

BOUND = 1e-5
"""Of the logits, relative to the largest: another order of summation."""

RAGGED = ["llama", "qwen3", "gemma3", "gpt-neox", "gpt-oss"]
UNIFORM = ["llama", "gemma3", "gpt-oss", "deepseek-v3"]
"""Families whose heads hold different tokens, and those whose heads hold the same ones."""

APART = {"deepseek_v3"}
"""Cannot be run after several caches in one pass."""

IDS = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(3)).tolist()
DOCUMENT, QUESTION = IDS[:40], IDS[40:]


@dataclass
class Case:
    model: kvtool.Model
    uniform: bool

    def keep(self, cache: DocumentCache, share: float = 0.4) -> list[torch.Tensor | None]:
        return [*keep_some(cache, share, uniform=self.uniform)]

    def prune(self, cache: DocumentCache, kept: list[torch.Tensor | None] | None = None) -> DocumentCache:
        pruned = prune(cache, self.keep(cache) if kept is None else kept, uniform=self.uniform)
        kind = UniformLayer if self.uniform else RaggedLayer
        assert all(isinstance(layer, kind) for layer in pruned.layers if not layer.holds_all)
        return pruned


CASES = [*[(name, False) for name in RAGGED], *[(name, True) for name in UNIFORM]]


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'uniform' if case[1] else 'ragged'}"
)
def case(request: pytest.FixtureRequest, model_of: Any) -> Case:
    name, uniform = request.param
    return Case(model_of(name), uniform)


@pytest.fixture
def model(case: Case) -> kvtool.Model:
    return case.model


@pytest.fixture
def dense(model: kvtool.Model) -> DocumentCache:
    return dense_cache(model, DOCUMENT)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= BOUND * b.abs().max())


def test_with_all_tokens_it_answers_as_a_dense_cache_does(
    case: Case, model: kvtool.Model, dense: DocumentCache
) -> None:
    cache = case.prune(dense, case.keep(dense, 2.0))
    prompts, most = [QUESTION[:3], QUESTION[3:15], QUESTION[15:16]], [6, 3, 5]
    answers = generate_many(model, cache, prompts, most)
    assert answers == generate_many(model, dense, prompts, most)
    ids = [*DOCUMENT, *QUESTION]
    answer = generate(model, ids, cache, max_tokens=8)
    assert answer == generate(model, ids, dense, max_tokens=8)
    assert cache.get_seq_length() == dense.get_seq_length()


def test_dropped_tokens_are_as_hidden_ones(case: Case, model: kvtool.Model, dense: DocumentCache) -> None:
    kept = case.keep(dense)
    if not case.uniform:
        kept[0][0] = False
    with hiding(model, kept):
        expected = logits_after(model, copy.deepcopy(dense), QUESTION)
    assert not near(expected, logits_after(model, dense, QUESTION))
    assert near(logits_after(model, case.prune(dense, kept), QUESTION), expected)


def test_layers_that_hold_all_stand_beside_others(
    case: Case, model: kvtool.Model, dense: DocumentCache
) -> None:
    kept = [None, *case.keep(dense)[1:]]
    with hiding(model, kept):
        expected = logits_after(model, copy.deepcopy(dense), QUESTION)
    assert near(logits_after(model, case.prune(dense, kept), QUESTION), expected)


def test_few_queries_at_a_time(
    case: Case, model: kvtool.Model, dense: DocumentCache, monkeypatch: Any
) -> None:
    cache = case.prune(dense)
    expected = logits_after(model, cache, QUESTION)
    monkeypatch.setattr("kvtool.engines.attention.capture.SCORES", 3 * (40 + len(QUESTION)))
    assert near(logits_after(model, cache, QUESTION), expected)


@torch.no_grad()
def test_several_caches_in_one_pass(case: Case, model: kvtool.Model, dense: DocumentCache) -> None:
    """Pruned ones and a dense one, one of whose sequences sees only a part of its cache."""
    if model.config.model_type in APART:
        pytest.skip("has passes of its own")
    others = [dense_cache(model, IDS[start : start + 30]) for start in (5, 20)]
    logits = []
    for together in (False, True):
        torch.manual_seed(1)
        caches = [
            case.prune(dense),
            case.prune(others[0]),
            copy.deepcopy(others[1]),
        ]
        rows = [SequenceBatch(model, cache) for cache in caches]
        rows[0].join(5, seen=25)
        feeds = [[(0, QUESTION), (5, QUESTION[:4])], [(0, [1])], [(0, [2, 3])]]
        more = [[(5, [9])], [(0, [8])], [(0, [7])]]
        for some in (feeds, more):
            pairs = list(zip(rows, some, strict=True))
            logits += feed_batches(model, pairs) if together else [row.feed(fed) for row, fed in pairs]
        for row, cache in zip(rows, caches, strict=True):
            row.close()
            assert cache.get_seq_length() == len(cache.token_ids)
    assert near(torch.cat(logits[6:]), torch.cat(logits[:6]))


@torch.no_grad()
def test_sequences_come_and_go(case: Case, model: kvtool.Model, dense: DocumentCache) -> None:
    rows = SequenceBatch(model, case.prune(dense))
    expected = [rows.feed([(0, ids)]) for ids in (QUESTION, [3])]
    rows.close()
    rows.feed([(7, [1] * (ROOM + 20)), (0, QUESTION)])
    rows.leave(7)
    assert rows.cache.get_seq_length() == 40 + len(QUESTION)
    assert near(rows.feed([(8, [5, 6]), (0, [3])])[1:], expected[1])


@torch.no_grad()
def test_sequences_that_leave_take_their_room_with_them(tiny: kvtool.Model) -> None:
    cache = prune(dense_cache(tiny, DOCUMENT), keep_some(dense_cache(tiny, DOCUMENT)))
    held, rows = cache.nbytes, SequenceBatch(tiny, cache)
    rows.feed([(number, QUESTION) for number in range(12)])
    each = (cache.nbytes - held) / (12 * len(QUESTION) + STEP)
    for number in range(1, 12):
        rows.leave(number)
    rows.feed([(0, [3])])
    assert cache.nbytes - held <= each * (len(QUESTION) + 1 + 2 * STEP)


def test_crop_within_what_was_appended_and_into_the_document(
    case: Case, model: kvtool.Model, dense: DocumentCache
) -> None:
    kept = case.keep(dense)
    cache = case.prune(dense, kept)
    before = logits_after(model, cache, QUESTION)
    generate(model, IDS, cache, max_tokens=4)
    cache.crop(40 - cache.get_seq_length())
    assert near(logits_after(model, cache, QUESTION), before)
    cache.crop(-12)
    dense.crop(-12)
    shorter = [some[:, :28] for some in kept]
    with hiding(model, shorter):
        expected = logits_after(model, dense, QUESTION)
    assert near(logits_after(model, cache, QUESTION), expected)
    cache.crop(-100)
    assert (cache.get_seq_length(), len(cache.token_ids)) == (0, 0)
    assert near(logits_after(model, cache, QUESTION), logits_after(model, dense_cache(model, []), QUESTION))


def test_deepcopies_are_independent(case: Case, model: kvtool.Model, dense: DocumentCache) -> None:
    cache = case.prune(dense)
    other = copy.deepcopy(cache)
    expected = generate(model, IDS, cache, max_tokens=6)
    layer = cache.layers[1]
    (layer.keys if case.uniform else layer.packed.keys).zero_()
    cache.crop(-3)
    assert generate(model, IDS, other, max_tokens=6) == expected


def test_beams_share_the_document(tiny: kvtool.Model) -> None:
    dense = dense_cache(tiny, DOCUMENT)
    cache, ids = prune(dense, keep_some(dense, 2.0)), torch.tensor([IDS])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 3}
    expected = tiny.model.generate(ids, **options)
    logits_after(tiny, cache, QUESTION)
    cache.batch_repeat_interleave(3)
    with cache_attention(tiny, cache):
        assert torch.equal(tiny.model.generate(ids, past_key_values=cache, **options), expected)


@pytest.mark.parametrize("uniform", [False, True])
def test_memory_is_that_of_what_is_kept(tiny: kvtool.Model, uniform: bool) -> None:
    dense = dense_cache(tiny, DOCUMENT)
    kept = keep_some(dense, uniform=uniform)
    cache = prune(dense, kept, uniform=uniform)
    size = dense.layers[0].keys.shape[3]
    for some, layer in zip(kept, cache.layers, strict=True):
        some[:, :PREFIX] = True
        places = some[0] if uniform else some
        assert layer.nbytes == int(some.sum()) * 2 * size * 4 + int(places.sum()) * 4
    held = cache.nbytes
    logits_after(tiny, cache, QUESTION)
    assert cache.nbytes > held
    cache.fit(0)
    assert cache.nbytes == held
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length()) == (0, 0)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_biases_are_added_to_scaled_scores(model_of: Any, name: str, monkeypatch: Any) -> None:
    model = model_of(name)
    dense = dense_cache(model, DOCUMENT)
    kept, biases = keep_some(dense), [torch.randn(2, 40) for _ in dense.layers]
    cache = prune(dense, kept, biases)

    def biased(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        scores = query @ key.repeat_interleave(2, 1).mT * scaling
        scores[..., :40] += biases[module.layer_idx].repeat_interleave(2, 0)[None, :, None]
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)

    with hiding(model, kept):
        monkeypatch.setattr(
            "tests.pruned.family_attention", lambda _, *rest, **options: biased(*rest, **options)
        )
        expected = logits_after(model, copy.deepcopy(dense), QUESTION)
    assert near(logits_after(model, cache, QUESTION), expected)
    assert not near(logits_after(model, prune(dense, kept), QUESTION), expected)


@pytest.mark.parametrize("name", ["gpt-oss", "softcapped"])
def test_a_bias_counts_a_token_again(request: Any, model_of: Any, name: str) -> None:
    """With sinks or a soft cap too: a token with a bias of log 2 is attended to as two of them."""
    model = request.getfixturevalue(name) if name == "softcapped" else model_of(name)
    dense = dense_cache(model, DOCUMENT)
    kept = keep_some(dense)
    twice = [torch.rand(some.shape) < 0.5 for some in kept]
    cache = prune(dense, kept, [some * math.log(2) for some in twice])

    def doubled(
        _: str, module: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any, **options: Any
    ) -> Any:
        again = twice[module.layer_idx].repeat_interleave(2, 0)[None, :, None] & mask[..., :40]
        keys, values = (torch.cat([x, x[:, :, :40]], 2) for x in (key, value))
        return family_attention(
            "eager", module, query, keys, values, torch.cat([mask, again], -1), *rest, **options
        )

    with pytest.MonkeyPatch.context() as patched, hiding(model, kept):
        patched.setattr("tests.pruned.family_attention", doubled)
        expected = logits_after(model, copy.deepcopy(dense), QUESTION)
    assert near(logits_after(model, cache, QUESTION), expected)
    assert not near(logits_after(model, prune(dense, kept), QUESTION), expected)


def test_biases_are_refused_before_loading_where_attention_adds_none(
    save_model: Any, sizes: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    layers = ["sliding_attention", "full_attention", "full_attention"]
    config = t.GptOssConfig(
        **sizes, layer_types=layers, head_dim=8, num_local_experts=4, num_experts_per_tok=2
    )
    model = kvtool.load_model(save_model(tmp_path, config))
    eager = modeling_gpt_oss.eager_attention_forward

    def blind(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return eager(module, query, key, value, mask.clamp(max=-1e9) * (mask < -1e9), **options)

    monkeypatch.setattr(modeling_gpt_oss, "eager_attention_forward", blind)
    plain, biased = (LayerGeometry(5, (1, 8), (1, 8), (2, 3), biased) for biased in (False, True))
    refuse_unreadable(model, Geometry(torch.float32, 9, (plain, plain, plain)))
    message = r"gpt_oss.*layer 1 \(full_attention\).*compress with a recipe that makes no biases"
    with pytest.raises(ModelError, match=message):
        refuse_unreadable(model, Geometry(torch.float32, 9, (plain, biased, plain)))
    pipeline = recipes()["attention-matching"].build()
    with pytest.raises(ModelError, match=r"layer 0 \(sliding_attention\)"):
        refuse_unmet("attention-matching", pipeline, model)


def test_a_pruned_cache_is_refused_outside_the_attention_interface(
    save_model: Any, sizes: Any, tmp_path: Any
) -> None:
    model = kvtool.load_model(save_model(tmp_path, t.FalconConfig(**sizes)))
    refuse_unreadable(model, Geometry(torch.float32, 9, (LayerGeometry(9, (2, 8), (2, 8)),)))
    with pytest.raises(ModelError, match="falcon does not go through"):
        refuse_unreadable(model, Geometry(torch.float32, 9, (LayerGeometry(5, (2, 8), (2, 8)),)))


def test_a_soft_cap_is_the_familys_own(softcapped: kvtool.Model) -> None:
    dense = dense_cache(softcapped, DOCUMENT)
    kept = keep_some(dense)
    with hiding(softcapped, kept):
        expected = logits_after(softcapped, copy.deepcopy(dense), QUESTION)
    assert near(logits_after(softcapped, prune(dense, kept), QUESTION), expected)


def test_what_needs_every_token_is_refused(tiny: kvtool.Model) -> None:
    dense = dense_cache(tiny, DOCUMENT)
    cache = prune(dense, keep_some(dense))
    with pytest.raises(UsageError, match="taking out a segment"):
        slice_kv(tiny, cache, 0, DOCUMENT, 0)
    with pytest.raises(UsageError, match="attends to"):
        query_attention(tiny, cache, torch.tensor(QUESTION), lambda _: None)
    with pytest.raises(UsageError, match="all keys"):
        cache.layers[0].keys.clone()
    with pytest.raises(UsageError, match="cache_attention"):
        tiny.model(torch.tensor([QUESTION]), past_key_values=cache)
    cache.parallel = ParallelEncoding(0.9, 0.9)
    with pytest.raises(UsageError, match="in parallel"):
        logits_after(tiny, cache, QUESTION)


def naive(query: Any, packed: Packed, key: Any, value: Any, mask: Any) -> torch.Tensor:
    """One query, head and token after the other, in float64."""
    output = torch.zeros(query.shape[2], query.shape[1], value.shape[3], dtype=torch.float64)
    group, n_document = query.shape[1] // key.shape[1], mask.shape[3] - key.shape[2]
    pieces = [x.split(packed.lengths) for x in packed[:4]]
    for head in range(query.shape[1]):
        keys, values, indices, bias = (piece[head // group] for piece in pieces)
        keys, values = torch.cat([keys, key[0, head // group]]), torch.cat([values, value[0, head // group]])
        columns = torch.cat([indices, n_document + torch.arange(key.shape[2])])
        for place in range(query.shape[2]):
            scores = keys.double() @ query[0, head, place].double() * 0.5
            scores[: len(bias)] += bias
            seen = mask[0, 0, place, columns]
            weights = scores.exp() * seen
            output[place, head] = weights / weights.sum() @ values.double()
    return output


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 3), st.data())
def test_attention_over_any_lengths(lengths: list[int], n_appended: int, group: int, data: Any) -> None:
    if not n_appended:
        # Something must be seen.
        lengths = [length + 1 for length in lengths]
    heads, n, n_queries = len(lengths), sum(lengths), data.draw(st.integers(1, 4))
    places = torch.randint(0, 12, (n,), dtype=torch.int32)
    packed = Packed(torch.randn(n, 4), torch.randn(n, 3), places, torch.randn(n), tuple(lengths))
    query, key, value = (
        torch.randn(1, count, tokens, size)
        for count, tokens, size in (
            (heads * group, n_queries, 4),
            (heads, n_appended, 4),
            (heads, n_appended, 3),
        )
    )
    mask = torch.rand(1, 1, n_queries, 12 + n_appended) < data.draw(st.sampled_from([0.5, 2.0]))
    mask[..., -1 if n_appended else slice(None)] = True
    expected = naive(query, packed, key, value, mask)
    output = softmax_attention(query, packed, key, value, mask, 0.5)[0]
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


def test_one_head_is_read_by_the_models_own_attention(model_of: Any) -> None:
    """Packed or not: latent attention has one head, from which it makes those of its queries."""
    model = model_of("deepseek-v3")
    dense = dense_cache(model, DOCUMENT)
    kept = keep_some(dense)
    packed, uniform = prune(dense, kept), prune(dense, kept, uniform=True)
    assert torch.equal(logits_after(model, packed, QUESTION), logits_after(model, uniform, QUESTION))


def test_heads_that_latent_attention_makes_cannot_hold_different_tokens(model_of: Any) -> None:
    model = model_of("deepseek-v3")
    dense = dense_cache(model, DOCUMENT)
    cache = prune(dense, keep_some(dense), [torch.zeros(1, 40) for _ in dense.layers])
    with pytest.raises(ModelError, match="makes its keys from what its cache holds"):
        logits_after(model, cache, QUESTION)
