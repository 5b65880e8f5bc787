"""The whole of an evaluation on a tiny model: what is the same is called so, what is broken is caught."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import kvtool
from kvtool.evaluation.evaluation import evaluate
from kvtool.evaluation.gate import Gate
from kvtool.measurement.scope import Scope
from kvtool.store.local import LocalStore

from .conftest import BROKEN, KL, NOISY, SMALL, Broken, of, write_questions


@pytest.fixture(scope="module")
def whole(documents: LocalStore, lively: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Everything measured, of everything."""
    turns = ["What did the ship carry?", "And when?"]
    lines = [{"document": name, "turns": turns} for name in ("a.txt", "c.txt")]
    return evaluate(
        documents,
        model=lively,
        recipes=["lossless", "kivi:bits=4:recent=32", "kivi:bits=2:recent=32", "zipcache"],
        questions=write_questions(tmp_path_factory.mktemp("questions"), lines),
        scope=SMALL,
        others=[*BROKEN, NOISY],
        command="kvtool eval",
    )


@pytest.mark.parametrize("name", ["raw", "lossless"])
def test_what_is_the_same_costs_nothing(whole: Any, name: str) -> None:
    found = of(whole, name)
    for metric, value in (("kl", 0.0), ("dnll", 0.0), ("top1", 1.0)):
        assert (found[metric]["low"], found[metric]["value"], found[metric]["high"]) == (value,) * 3
    assert found["answers"]["f1"]["value"] == found["answers"]["exact_match"]["value"] == 1.0
    assert not found["retrieval"]["differs_from_raw"]
    assert np.abs(np.array(found["relative_error"]["keys"])).max() == 0


def test_fewer_bits_cost_more(whole: Any) -> None:
    four, two = of(whole, "kivi:bits=4:recent=32"), of(whole, "kivi:bits=2:recent=32")
    assert two["bits_per_value"] < four["bits_per_value"] < of(whole, "lossless")["bits_per_value"]
    assert two["kl"]["low"] > four["kl"]["high"] > 0
    assert two["top1"]["value"] < four["top1"]["value"]
    assert np.mean(two["relative_error"]["keys"]) > 2 * np.mean(four["relative_error"]["keys"])


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.name)
def test_what_is_broken_is_caught(whole: Any, broken: Broken) -> None:
    found, good = of(whole, broken.name), of(whole, "kivi:bits=4:recent=32")
    assert found["kl"]["low"] > good["kl"]["high"]
    assert found["top1"]["high"] < 1
    assert found["answers"]["f1"]["value"] < 1


def test_the_map_of_errors_shows_where(whole: Any) -> None:
    zeroed = of(whole, "zeroed layer")["relative_error"]
    keys, values = np.array(zeroed["keys"]), np.array(zeroed["values"])
    assert keys.shape == (3, 2)
    assert keys[1].tolist() == values[1].tolist() == [1.0, 1.0]
    assert keys[[0, 2]].max() == values[[0, 2]].max() == 0
    turned = of(whole, "RoPE off by one")["relative_error"]
    assert np.array(turned["keys"]).min() > 0.05
    assert np.array(turned["values"]).max() == 0
    assert np.array(of(whole, "swapped heads")["relative_error"]["values"]).min() > 0.5
    np.testing.assert_allclose(of(whole, "noisy")["relative_error"]["values"], 0.05, rtol=0.1)


@torch.no_grad()
def test_kl_over_a_noisy_cache_is_what_transformers_alone_gives(
    whole: Any, documents: LocalStore, lively: kvtool.Model
) -> None:
    """Its own cache class, one plain pass, NumPy in double precision: nothing of the evaluation's path."""
    prefix = documents["a.txt"].prefix["tokens"]
    told = {d["name"]: d["kl"] for d in of(whole, "noisy")["by_document"]}
    for name in ("a.txt", "c.txt"):
        loaded = documents.load(name, lively)
        ids = loaded.token_ids.tolist()
        loaded.crop(prefix + 500 - len(ids))
        noisy = copy.deepcopy(loaded)
        generator = torch.Generator().manual_seed(7)
        for layer in noisy.layers:
            for part in (layer.keys, layer.values):
                part.add_(0.05 * part.std() * torch.randn(part.shape, generator=generator))
        logits = []
        for source in (loaded, noisy):
            cache = DynamicCache()
            for index, layer in enumerate(source.layers):
                cache.update(layer.keys[:, :, :-1].clone(), layer.values[:, :, :-1].clone(), index)
            fed = torch.tensor([ids[prefix + 499 : prefix + 499 + 64]])
            logits.append(lively.model(fed, past_key_values=cache).logits[0].double().numpy())
        p, q = (np.exp(x - x.max(1, keepdims=True)) for x in logits)
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        assert told[name] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-3)


def test_the_size_is_that_of_the_variant(documents: LocalStore, lively: kvtool.Model, tmp_path: Path) -> None:
    """Where all of a segment is cached, bits per value are those of the file that compress writes."""
    store = LocalStore(shutil.copytree(documents.root, tmp_path / "store"))
    kvtool.compress(store, "a.txt", recipe="kivi", bits=4)
    scope = Scope(metrics=("times",), repeats=1)
    found = evaluate(store, "a.txt", model=lively, recipes=["kivi:bits=4"], scope=scope)
    kv = store.read("a.txt")
    assert found["documents"][0]["cached_tokens"] == kv.n_tokens
    bits = 8 * store.size("a.txt", "kivi") / kv.n_elements
    # The header says where a document came from, in a few words more.
    assert of(found, "kivi:bits=4")["bits_per_value"] == pytest.approx(bits, rel=0.01)


def test_only_pruning_lowers_what_a_loaded_cache_takes(documents: LocalStore, lively: kvtool.Model) -> None:
    """The prefix counts, and four bytes for the place of each kept token."""
    recipes = ["kivi:bits=4", "keydiff:keep=0.3", "keydiff:keep=0.3:heads=across"]
    scope = Scope(metrics=("kl",), tokens=4)
    found = evaluate(documents, "a.txt", model=lively, recipes=recipes, scope=scope)
    raw, kivi, *pruned = (candidate["memory"] for candidate in found["candidates"])
    assert raw["bits_per_value"] == kivi["bits_per_value"] == 32
    assert kivi["stored_bytes"] < kivi["resident_bytes"] == raw["resident_bytes"]
    assert [memory["bits_per_value"] / 32 for memory in pruned] == pytest.approx([0.33, 0.33], rel=0.1)
    cache = documents.load("a.txt", lively)
    cache.fit(0)
    n_prefix = len(documents.parts("a.txt")[0].token_ids)
    n_tokens = n_prefix + found["documents"][0]["cached_tokens"]
    assert raw["resident_bytes"] == cache.nbytes / len(cache.token_ids) * n_tokens


def test_the_store_is_only_read(whole: Any, documents: LocalStore) -> None:
    assert documents["a.txt"].variants == ["raw"]
    assert not documents.collect(dry_run=True)


ESTIMATE = {"value", "low", "high", "n"}
RETRIEVAL = (
    *("bits_per_value", "score", "retention", "differs_from_raw", "questions", "tasks", "turns"),
    "by_length_and_depth",
)
CANDIDATE: dict[str, Any] = {
    **dict.fromkeys(("name", "kind", "family", "summary", "paper"), str),
    **dict.fromkeys(("bits_per_value", "ratio"), float),
    **dict.fromkeys(("kl", "dnll", "top1"), ESTIMATE),
    "memory": {"stored_bytes", "resident_bytes", "bits_per_value"},
    "retrieval": set(RETRIEVAL),
    "answers": {"exact_match", "f1", "questions", "turns", "examples"},
    "relative_error": {"keys", "values"},
    "times": {"encode_seconds", "load_seconds", "ttft_seconds", "ttft_speedup", "peak_bytes"},
    "by_document": list,
}


def test_its_shape_is_what_readers_rely_on(whole: Any) -> None:
    assert set(whole) == {
        *("format", "command", "created", "kvtool", "machine", "model", "settings", "documents"),
        *("candidates", "times", "notes", "gate"),
    }
    assert set(whole["times"]) == {"document", "tokens", "repeats", "prefill_seconds"}
    assert set(whole["documents"][0]) == {"name", "segment", "cached_tokens", "predicted_tokens"}
    for candidate in whole["candidates"]:
        assert set(candidate) == set(CANDIDATE)
        for key, shape in CANDIDATE.items():
            if isinstance(shape, set):
                assert set(candidate[key]) == shape, key
            else:
                assert isinstance(candidate[key], shape), key
        assert set(candidate["by_document"][0]) == {"name", "bits_per_value", "kl", "dnll", "top1"}
        for cell in candidate["retrieval"]["by_length_and_depth"]:
            assert set(cell) == {"length", "depth", "score", "questions"}
        for task in candidate["retrieval"]["tasks"].values():
            assert set(task) == {"score", "questions"}


def test_it_is_json(whole: Any) -> None:
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole


def test_a_cache_that_is_no_numbers_is_said(
    documents: LocalStore, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path))

    def overflow(cache: kvtool.DocumentCache, bench: Any) -> None:
        cache.layers[0].keys.fill_(float("nan"))

    others = [Broken("overflown", overflow)]
    for _ in range(2):  # measured, and recalled
        found = evaluate(
            documents, model=lively, recipes=["nf4"], scope=KL, others=others, gate=Gate(max_kl=100.0)
        )
        json.dumps(found, allow_nan=False)
        assert of(found, "overflown")["kl"] is None
        assert of(found, "overflown")["relative_error"] is None
        assert any(note.startswith("overflown: its cache") for note in found["notes"])
        assert [(c["candidate"], c["passed"]) for c in found["gate"]] == [("nf4", True), ("overflown", False)]
