"""Adaptive parallel encoding: its formula, over every family whose attention is plain, and a model left as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

import kvtool
from kvtool.ask import ask, generate
from kvtool.blending.blend import BlendOptions
from kvtool.engines.attention.cache_attention import cache_attention
from kvtool.engines.attention.check import is_softmax_attention
from kvtool.engines.attention.parallel_encoding import adaptive_attention
from kvtool.engines.batching.generate_many import end_tokens, generate_many, logits_after
from kvtool.engines.cache import DocumentCache, ParallelEncoding
from kvtool.errors import ModelError

TEXTS = {
    "a.txt": "The harbour lies to the north of the town, and seven ships are in it today.",
    "b.txt": "A loaf of rye bread costs three crowns.",
    "c.txt": "Keys and values of every token are kept, layer by layer, head by head.",
}
QUESTION = list(b"How many ships are in the harbour?")
SINKS = {"gpt-oss"}

BOUND = 1e-5
"""The largest difference in float32, relative to the largest element of the tensor."""


@pytest.fixture(scope="module")
def store(family: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> kvtool.Store:
    folder = tmp_path_factory.mktemp("documents")
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    store = kvtool.Store(folder / "store")
    kvtool.prefill([folder / name for name in TEXTS], model=family, store=store)
    return store


@pytest.fixture
def plain(request: pytest.FixtureRequest, family: kvtool.Model) -> kvtool.Model:
    if request.node.callspec.params["family"] in SINKS:
        pytest.skip("is refused")
    return family


@pytest.fixture
def cache(plain: Any, store: kvtool.Store) -> DocumentCache:
    return kvtool.blend(store, list(store), plain, policy="ape")


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def read_as(cache: DocumentCache, **changes: float) -> DocumentCache:
    other = copy.deepcopy(cache)
    other.parallel = replace(cache.parallel, **changes)  # type: ignore[type-var]
    return other


def test_without_temperature_and_scale_it_is_plain_attention(plain: Any, cache: Any) -> None:
    adapted = logits_after(plain, cache, QUESTION)
    same = logits_after(plain, read_as(cache, temperature=1.0, scale=1.0), QUESTION)
    cache.parallel = None
    expected = logits_after(plain, cache, QUESTION)
    assert far(same, expected) < BOUND
    assert far(adapted, expected) > 100 * BOUND


def test_attention_is_the_papers() -> None:
    """Two attentions, put together by what each sums up to, query by query."""
    rng = np.random.default_rng(0)
    heads, group, n, looking, size = 2, 3, 30, 7, 4
    query = rng.normal(size=(heads * group, looking, size)).astype(np.float32)
    key, value = (rng.normal(size=(heads, n, size)).astype(np.float32) for _ in range(2))
    seen = np.tril(np.ones((looking, n), bool), n - looking)
    seen[-1, :21] = False  # a window that no document is in
    parallel, documents = ParallelEncoding(0.8, 0.7, prefix_tokens=5), range(5, 21)
    expected = np.zeros((looking, heads * group, size))
    for head in range(heads * group):
        for place in range(looking):
            k, v = key[head // group], value[head // group]
            scores = k @ query[head, place] * 0.5
            inside = [i for i in documents if seen[place, i]]
            outside = [i for i in range(n) if seen[place, i] and i not in documents]
            of_others = np.exp(scores[outside])
            others = of_others @ v[outside] / of_others.sum()
            if not inside:
                expected[place, head] = others
                continue
            of_documents = np.exp(scores[inside] / 0.8)
            within = of_documents @ v[inside] / of_documents.sum()
            a, b = of_documents.sum() ** (0.7 * 0.8), of_others.sum()
            expected[place, head] = (a * within + b * others) / (a + b)
    states = [torch.tensor(x)[None] for x in (query, key, value)]
    mask = torch.tensor(seen)[None, None]
    output = adaptive_attention(*states, mask, 0.5, parallel, slice(5, 21))
    assert far(output[0], torch.tensor(expected, dtype=torch.float32)) < BOUND


def test_few_queries_at_a_time(plain: Any, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits_after(plain, cache, QUESTION)
    monkeypatch.setattr("kvtool.engines.attention.capture.SCORES", 5 * cache.get_seq_length())
    assert far(logits_after(plain, cache, QUESTION), expected) < BOUND


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "deepseek-v3"], indirect=True)
def test_places_are_the_papers(family: kvtool.Model, store: kvtool.Store, cache: Any) -> None:
    """As if each document had stayed where it was prefilled, and the question followed the longest."""
    alone = [store.load(name, family) for name in store]
    prefix = cache.parallel.prefix_tokens
    whole = copy.deepcopy(cache)
    for layer, *others in zip(whole.layers, *[each.layers for each in alone], strict=True):
        for side in ("keys", "values"):
            first, *rest = (getattr(other, side) for other in others)
            setattr(layer, side, torch.cat([first, *[each[:, :, prefix:] for each in rest]], 2))
    longest = max(each.get_seq_length() for each in alone)
    assert whole.get_seq_length() == cache.get_seq_length() > longest
    expected = logits_after(family, whole, QUESTION, position=longest)
    assert far(logits_after(family, cache, QUESTION), expected) < 10 * BOUND


def test_generate_reads_it_too(plain: Any, cache: Any) -> None:
    """generate, with transformers' own masks, answers as one pass for several does, and with beams it runs."""
    (alone,) = generate_many(plain, cache, [QUESTION], [8])
    ids = [*cache.token_ids.tolist(), *QUESTION]
    answer = generate(plain, ids, copy.deepcopy(cache), max_tokens=8)
    assert [token for token in answer if token not in end_tokens(plain)] == alone
    beams = copy.deepcopy(cache)
    beams.batch_repeat_interleave(2)
    options = {"max_new_tokens": 1, "do_sample": False, "num_beams": 2}
    with cache_attention(plain, beams):
        out = plain.model.generate(torch.tensor([ids]), past_key_values=beams, **options)
    assert out[0, -1] == answer[0]


def test_a_cache_that_was_cropped(plain: Any, cache: Any) -> None:
    """Tokens fed after it are not of the documents, though they stand where these were."""
    cache.crop(-9)
    again = logits_after(plain, cache, QUESTION)
    documents = slice(cache.parallel.prefix_tokens, cache.get_seq_length())
    whole = read_as(cache, temperature=1.0, scale=1.0)
    assert documents.stop == len(cache.token_ids)
    assert far(again, logits_after(plain, whole, QUESTION)) > 100 * BOUND
    cache.crop(-(documents.stop - documents.start))
    whole.crop(-(documents.stop - documents.start))
    assert far(logits_after(plain, cache, QUESTION), logits_after(plain, whole, QUESTION)) < BOUND


def test_the_model_is_as_it_was(plain: Any, cache: Any) -> None:
    before = plain.model.config._attn_implementation

    def read() -> None:
        with cache_attention(plain, cache):
            assert plain.model.config._attn_implementation != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    assert plain.model.config._attn_implementation == before
    cache.parallel = None
    with cache_attention(plain, cache), cache_attention(plain, None):
        assert plain.model.config._attn_implementation == before


def test_a_question_is_asked(plain: Any, store: kvtool.Store) -> None:
    options = BlendOptions(policy="ape")
    answer = ask("Why?", documents=list(store), model=plain, store=store, options=options, max_tokens=3)
    assert answer.recomputed_tokens == 2 * len("\n\n")
    assert 0 < len(answer.token_ids) <= 3


@pytest.mark.parametrize("family", sorted(SINKS), indirect=True)
def test_sinks_are_refused(family: kvtool.Model, store: kvtool.Store) -> None:
    before = family.model.config._attn_implementation
    with pytest.raises(ModelError, match=r"gpt_oss.*another --policy"):
        kvtool.blend(store, list(store), family, policy="ape")
    assert family.model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (t.Gemma2Config, {"head_dim": 8, "sliding_window": 16}),
        (t.Gemma2Config, {"head_dim": 8, "sliding_window": 16, "initializer_range": 0.02}),
        (t.FalconConfig, {}),
    ],
)
def test_soft_caps_and_other_attention_are_refused(
    config: Any, options: Any, save_model: Any, sizes: Any, tmp_path: Any
) -> None:
    model = kvtool.load_model(save_model(tmp_path, config(**sizes | options)))
    before = model.model.config._attn_implementation
    assert not is_softmax_attention(model)
    assert model.model.config._attn_implementation == before
