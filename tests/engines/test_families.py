"""Every family: prefill → store → load gives what a plain prefill by transformers gives."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as t

import kvtool
from kvtool.engines import prefiller
from kvtool.engines.batching.multi_cache import supports_multi_cache
from kvtool.engines.transformers import feed
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens
from tests.caches import differences, full_prefill, same

BOUND = 1e-5
"""Largest difference in float32, relative to the largest element of the tensor. Measured: 2.0e-6."""

STEP, PACK, SEGMENT = 48, 320, 300
LENGTHS = {"docs/a.txt": 40, "docs/b.txt": 90, "docs/c.txt": 17, "docs/d.txt": 61, "docs/e.txt": 1}
STEPPED, SPLIT = "docs/stepped.txt", "docs/z-split.txt"


def text(length: int, seed: int) -> str:
    words = ["cache", "of", "keys", "and", "values.", "Document", "of tokens,", "so"]
    draw = random.Random(seed)
    return " ".join(draw.choice(words) for _ in range(length))[:length]


@dataclass
class Prefilled:
    model: kvtool.Model
    store: kvtool.Store
    alone: kvtool.Store
    """The same documents, each in one pass of its own."""
    made: dict[tuple[int, ...], kvtool.codecs.KV]
    """Copies of what ``Prefiller`` returned, by token ids."""
    packed: list[int]
    """The number of documents of each pass."""


@pytest.fixture(scope="module")
def prefilled(family: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Prefilled:
    root = tmp_path_factory.mktemp("documents")
    (root / "docs").mkdir()
    for seed, (name, length) in enumerate((LENGTHS | {STEPPED: 250, SPLIT: 700}).items()):
        (root / name).write_text(text(length, seed))
    result = Prefilled(family, kvtool.Store(root / "store"), kvtool.Store(root / "alone"), made={}, packed=[])
    plain = prefiller.Prefiller.many

    def many(self: Any, rows: Any, *options: Any) -> Any:
        kvs = plain(self, rows, *options)
        result.made |= {tuple(row): clone(kv) for row, kv in zip(rows, kvs, strict=True)}
        return kvs

    feed_packed = prefiller.feed_packed

    def counting(model: kvtool.Model, rows: Any, cache: Any) -> None:
        result.packed.append(len(rows))
        feed_packed(model, rows, cache)

    sizes = {"segment_tokens": SEGMENT, "step_tokens": STEP, "pack_tokens": PACK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefiller.Prefiller, "many", many)
        patch.setattr(prefiller, "feed_packed", counting)
        report = kvtool.prefill([root / "docs"], model=family, store=result.store, **sizes)
    assert report.problems == []
    sizes = {"segment_tokens": SEGMENT, "step_tokens": 4096, "pack_tokens": 0}
    kvtool.prefill([root / "docs"], model=family, store=result.alone, **sizes)
    return result


def clone(kv: Any) -> Any:
    layers = tuple(type(x)(x.keys.clone(), x.values.clone(), x.positions.clone()) for x in kv.layers)
    return kvtool.codecs.KV(layers, kv.token_ids.clone(), kv.rope)


def segments(store: kvtool.Store) -> Any:
    return [(name, n) for name in store for n in range(len(store[name].segments))]


def test_documents_are_packed_stepped_and_split(prefilled: Any) -> None:
    store = prefilled.store
    assert sum(prefilled.packed) == len(LENGTHS), "documents of the pack went through one by one"
    assert len(store[STEPPED].segments) == 1
    assert store[STEPPED].segments[0].n_tokens > 2 * STEP
    assert len(store[SPLIT].segments) > 2


def test_greedy_generation_equals_that_after_plain_prefill(prefilled: Any) -> None:
    model = prefilled.model
    question = torch.tensor([document_tokens(model, "\n\nAnd then?")])
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    answers = set()
    for name, segment in (("docs/b.txt", 0), ("docs/c.txt", 0), (STEPPED, 0), (SPLIT, 1)):
        cache = prefilled.store.load(name, model, segment=segment)
        ids = torch.cat([cache.token_ids[None], question], 1)
        plain = model.model.generate(ids, **options)
        assert torch.equal(model.model.generate(ids, past_key_values=cache, **options), plain), name
        answers.add(tuple(plain[0, ids.shape[1] :].tolist()))
    assert len(answers) > 1, "the answers should depend on the documents, or equality says nothing"


def test_loaded_tensors_equal_those_of_a_plain_forward(prefilled: Any) -> None:
    model = prefilled.model
    for name, segment in segments(prefilled.store):
        cache = prefilled.store.load(name, model, segment=segment)
        plain = full_prefill(model, cache.token_ids)
        assert max(differences(cache, plain)) < BOUND, (name, segment)


def test_packed_and_stepped_equal_one_pass_alone(prefilled: Any) -> None:
    for name, segment in segments(prefilled.store):
        here, alone = (s.read(name, segment=segment) for s in (prefilled.store, prefilled.alone))
        assert torch.equal(here.token_ids, alone.token_ids)
        assert max(differences(here, alone)) < BOUND, (name, segment)


def test_reading_gives_the_very_bits_that_prefill_produced(prefilled: Any) -> None:
    assert len(segments(prefilled.store)) == len(prefilled.made)
    for name, segment in segments(prefilled.store):
        kv = prefilled.store.read(name, segment=segment)
        made = prefilled.made[tuple(kv.token_ids.tolist())]
        assert same(kv, made)
        assert all(torch.equal(x.positions, y.positions) for x, y in zip(kv.layers, made.layers, strict=True))
        assert kv.rope == made.rope


def test_a_family_that_does_not_honour_masks_is_prefilled_one_by_one(
    model_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mixed(model: kvtool.Model, rows: Any, cache: Any) -> None:
        feed(model, [token for row in rows for token in row], cache)

    monkeypatch.setattr(prefiller, "feed_packed", mixed)
    rows = [list(range(20, 40)), list(range(60, 75))]
    made = prefiller.Prefiller(model_of("qwen2"), [256, 1, 2])
    kvs = made.many(rows)
    assert "qwen2" in caplog.text
    assert "one by one" in caplog.text
    for row, kv in zip(rows, kvs, strict=True):
        assert max(differences(kv, made.one(row))) == 0


# Families whose state is not one key and one value for every token in every layer.
OTHERS = {
    "mamba": t.MambaConfig(),
    "jamba": t.JambaConfig(),
    "recurrent_gemma": t.RecurrentGemmaConfig(),
    "t5": t.T5Config(),
    "llama4_text": t.Llama4TextConfig(),
    "gemma3n_text": t.Gemma3nTextConfig(),
    "falcon": t.FalconConfig(alibi=True),
    "lfm2": t.Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_refused_by_name(name: str, tiny: kvtool.Model, tmp_path: Any) -> None:
    # No weights: the config is enough, nothing is downloaded or computed for a model that cannot be used.
    OTHERS[name].save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    refused(kvtool.load_model(tmp_path / "model"), name, tmp_path)
    assert not (tmp_path / "store").exists()


def test_a_family_that_leaves_the_cache_empty_is_refused(save_model: Any, sizes: Any, tmp_path: Any) -> None:
    # RWKV's config says nothing of it: only running it shows that the cache stays empty.
    config = t.RwkvConfig(**sizes, attention_hidden_size=32)
    refused(kvtool.load_model(save_model(tmp_path / "model", config)), "rwkv", tmp_path)


# Families whose forward takes no positions: after a cache of several documents they would answer wrongly, or not at all.
UNPLACED = {
    "bloom": t.BloomConfig(n_layer=2, n_head=4, hidden_size=32, vocab_size=261),
    "mpt": t.MptConfig(n_layers=2, n_heads=4, d_model=32, vocab_size=261),
}


@pytest.mark.parametrize("name", UNPLACED)
def test_families_without_positions_are_refused_by_every_door(
    name: str, save_model: Any, tmp_path: Any
) -> None:
    model = kvtool.load_model(save_model(tmp_path / "model", UNPLACED[name]))
    refused(model, name, tmp_path)
    with pytest.raises(ModelError, match=name):
        supports_multi_cache(model)


def test_attention_to_later_tokens_is_refused(save_model: Any, sizes: Any, tmp_path: Any) -> None:
    config = t.Gemma3TextConfig(**sizes, head_dim=8, use_bidirectional_attention=True)
    refused(kvtool.load_model(save_model(tmp_path / "model", config)), "gemma3_text", tmp_path)


@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_a_partial_cache_is_refused(
    layers: Any, model_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = model_of("qwen2")
    update = kvtool.DocumentCache.update

    def partial(self: Any, keys: Any, values: Any, layer_idx: Any, *rest: Any, **options: Any) -> Any:
        whole = update(self, keys, values, layer_idx, *rest, **options)
        if layer_idx in layers:
            self.layers[layer_idx].crop(-1)
        return whole

    monkeypatch.setattr(kvtool.DocumentCache, "update", partial)
    refused(model, "qwen2", tmp_path)


def refused(model: kvtool.Model, family: kvtool.Model, tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_text("some words")
    store = kvtool.Store(tmp_path / "store")
    with pytest.raises(ModelError, match=rf"\b{family}\b"):
        kvtool.prefill([tmp_path / "a.txt"], model=model, store=store)
    assert list(store) == []
    assert list((tmp_path / "store").rglob("*.safetensors")) == []
