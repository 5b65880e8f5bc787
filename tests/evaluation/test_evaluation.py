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
from kvtool.codecs import CodecError, Pipeline, Recipe, Sample
from kvtool.evaluation.evaluation import evaluate
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.run import Progress, Runner
from kvtool.measurement.scope import Scope

from .conftest import BROKEN, NOISY, Broken, prose

SMALL = Scope(context=500, tokens=64, lengths=(2400,), haystacks=1, answer_tokens=8, repeats=1)
KL = Scope(metrics=("kl",), context=500, tokens=64)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    asked = [
        {"document": "a.txt", "question": "What did the ship carry?"},
        {"document": "b.txt", "turns": ["Who left?", "When?", "With what?"]},
        {"document": "a.txt", "question": "How many sailors?"},
    ]
    path.write_text("\n".join(map(json.dumps, asked)))
    return path


@pytest.fixture(scope="module")
def whole(documents: kvtool.Store, lively: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Everything measured, of everything."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    asked = [{"document": n, "turns": ["What did the ship carry?", "And when?"]} for n in ("a.txt", "c.txt")]
    path.write_text("\n".join(map(json.dumps, asked)))
    recipes = ["lossless", "kivi:bits=4:recent=32", "kivi:bits=2:recent=32", "zipcache"]
    return evaluate(
        documents,
        model=lively,
        recipes=recipes,
        questions=path,
        scope=SMALL,
        others=[*BROKEN, NOISY],
        command="kvtool eval",
    )


def of(evaluation: Any, name: str) -> Any:
    (found,) = (c for c in evaluation["candidates"] if c["name"] == name)
    return found


@pytest.mark.parametrize("name", ["raw", "lossless"])
def test_what_is_the_same_costs_nothing(whole: Any, name: str) -> None:
    found = of(whole, name)
    for metric, value in (("kl", 0.0), ("dnll", 0.0), ("top1", 1.0)):
        assert (found[metric]["low"], found[metric]["value"], found[metric]["high"]) == (value,) * 3
    assert found["answers"]["f1"]["value"] == found["answers"]["exact"]["value"] == 1.0
    assert not found["retrieval"]["told_from_raw"]
    assert np.abs(np.array(found["error"]["keys"])).max() == 0


def test_fewer_bits_cost_more(whole: Any) -> None:
    four, two = of(whole, "kivi:bits=4:recent=32"), of(whole, "kivi:bits=2:recent=32")
    assert two["bits_per_value"] < four["bits_per_value"] < of(whole, "lossless")["bits_per_value"]
    assert two["kl"]["low"] > four["kl"]["high"] > 0
    assert two["top1"]["value"] < four["top1"]["value"]
    assert np.mean(two["error"]["keys"]) > 2 * np.mean(four["error"]["keys"])


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.name)
def test_what_is_broken_is_caught(whole: Any, broken: Broken) -> None:
    found, good = of(whole, broken.name), of(whole, "kivi:bits=4:recent=32")
    assert found["kl"]["low"] > good["kl"]["high"]
    assert found["top1"]["high"] < 1
    assert found["answers"]["f1"]["value"] < 1


def test_the_map_of_errors_shows_where(whole: Any) -> None:
    keys, values = (np.array(of(whole, "zeroed layer")["error"][side]) for side in ("keys", "values"))
    assert keys.shape == (3, 2)
    assert keys[1].tolist() == values[1].tolist() == [1.0, 1.0]
    assert keys[[0, 2]].max() == values[[0, 2]].max() == 0
    turned = of(whole, "RoPE off by one")["error"]
    assert np.array(turned["keys"]).min() > 0.05
    assert np.array(turned["values"]).max() == 0
    assert np.array(of(whole, "swapped heads")["error"]["values"]).min() > 0.5
    np.testing.assert_allclose(of(whole, "noisy")["error"]["values"], 0.05, rtol=0.1)


@torch.no_grad()
def test_kl_over_a_noisy_cache_is_what_transformers_alone_gives(
    whole: Any, documents: kvtool.Store, lively: kvtool.Model
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


def test_the_size_is_that_of_the_variant(
    documents: kvtool.Store, lively: kvtool.Model, tmp_path: Path
) -> None:
    """Where all of a segment is cached, bits per value are those of the file that compress writes."""
    store = kvtool.Store(shutil.copytree(documents.root, tmp_path / "store"))
    kvtool.compress(store, "a.txt", recipe="kivi", bits=4)
    scope = Scope(metrics=("times",), repeats=1)
    found = evaluate(store, "a.txt", model=lively, recipes=["kivi:bits=4"], scope=scope)
    kv = store.read("a.txt")
    assert found["documents"][0]["cached_tokens"] == kv.n_tokens
    bits = 8 * store.size("a.txt", "kivi") / kv.n_elements
    # The header says where a document came from, in a few words more.
    assert of(found, "kivi:bits=4")["bits_per_value"] == pytest.approx(bits, rel=0.01)


def test_the_store_is_only_read(whole: Any, documents: kvtool.Store) -> None:
    assert documents["a.txt"].variants == ["raw"]
    assert not documents.collect(dry_run=True)


ESTIMATE = {"value", "low", "high", "n"}
CANDIDATE = {
    "name": str,
    "kind": str,
    "family": str,
    "summary": str,
    "paper": str,
    "bits_per_value": float,
    "ratio": float,
    "kl": ESTIMATE,
    "dnll": ESTIMATE,
    "top1": ESTIMATE,
    "retrieval": {"score", "retention", "told_from_raw", "asked", "tasks", "turns", "map"},
    "answers": {"exact", "f1", "asked", "turns", "examples"},
    "error": {"keys", "values"},
    "times": {"encode_seconds", "load_seconds", "first_token_seconds", "ttft_ratio", "peak_bytes"},
    "by_document": list,
}


def test_its_shape_is_what_readers_rely_on(whole: Any) -> None:
    assert set(whole) == {
        *("format", "command", "created", "kvtool", "machine", "model", "settings", "documents"),
        *("candidates", "times", "notes", "gate"),
    }
    assert set(whole["times"]) == {"document", "tokens", "repeats", "prefill_seconds"}
    assert set(whole["documents"][0]) == {"name", "segment", "cached_tokens", "fed_tokens"}
    for candidate in whole["candidates"]:
        assert set(candidate) == set(CANDIDATE)
        for key, shape in CANDIDATE.items():
            if isinstance(shape, set):
                assert set(candidate[key]) == shape, key
            else:
                assert isinstance(candidate[key], shape), key
        assert set(candidate["by_document"][0]) == {"name", "bits_per_value", "kl", "dnll", "top1"}
        assert {frozenset(cell) for cell in candidate["retrieval"]["map"]} == {
            frozenset({"length", "depth", "score", "asked"})
        }
        for task in candidate["retrieval"]["tasks"].values():
            assert set(task) == {"score", "asked"}


def test_it_is_json(whole: Any) -> None:
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole


def test_variants_are_compared_by_default(
    documents: kvtool.Store, lively: kvtool.Model, tmp_path: Path
) -> None:
    store = kvtool.Store(shutil.copytree(documents.root, tmp_path / "store"))
    with pytest.raises(kvtool.KvtoolError, match="nothing to compare"):
        evaluate(store, model=lively, scope=KL)
    kvtool.compress(store, recipe="kivi", bits=4, name="small")
    found = evaluate(store, model=lively, scope=KL)
    assert [(c["name"], c["family"]) for c in found["candidates"]] == [("raw", "raw"), ("small", "kivi")]
    kvtool.compress(store, "a.txt", recipe="kivi", bits=2, name="small", replace=True)
    with pytest.raises(kvtool.KvtoolError, match="made otherwise"):
        evaluate(store, model=lively, scope=KL)


def test_a_variant_whose_stages_are_not_here_is_refused(
    documents: kvtool.Store, lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be measured with another variant's pipeline."""
    store = kvtool.Store(shutil.copytree(documents.root, tmp_path / "store"))
    kvtool.compress(store, recipe="kivi", bits=4)
    kvtool.compress(store, recipe="nf4", name="plugin")
    known = Pipeline.from_config

    def without_plugins(config: Any, *calibrations: Any) -> Pipeline:
        if "blockwise" in json.dumps(config):
            raise CodecError("stage 'blockwise' is not registered")
        return known(config, *calibrations)

    monkeypatch.setattr(Pipeline, "from_config", without_plugins)
    with pytest.raises(
        kvtool.KvtoolError, match=r"its variant 'plugin' cannot be made here \(stage 'blockwise'"
    ):
        evaluate(store, model=lively, scope=KL)


def test_a_recipe_is_measured_with_the_calibration_that_the_store_holds(
    documents: kvtool.Store, lively: kvtool.Model, tmp_path: Path, centred: Recipe
) -> None:
    assert centred.fit
    store = kvtool.Store(shutil.copytree(documents.root, tmp_path / "store"))
    with pytest.raises(kvtool.KvtoolError, match="'centred': needs a calibration"):
        evaluate(store, "a.txt", model=lively, recipes=["centred:bits=8"], scope=KL)
    calibration = centred.fit([Sample(store.read("a.txt"))]).made(model=lively.fingerprint, source=None)
    kvtool.compress(store, "a.txt", recipe="centred", bits=8, calibration=calibration)
    measured = [
        evaluate(store, "a.txt", model=lively, recipes=recipes, scope=KL)["candidates"][1]
        for recipes in (["centred:bits=8"], ["centred:bits=1"], None)
    ]
    kl = [one["kl"]["value"] for one in measured]
    assert kl[0] == kl[2] < kl[1]


def test_another_models_documents_in_the_store_do_not_matter(
    documents: kvtool.Store, lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their prefix has the same tokens, but other keys and values."""
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    store = kvtool.Store(shutil.copytree(documents.root, tmp_path / "store"))
    (tmp_path / "0.txt").write_text(prose(60, 9))
    other = kvtool.load_model(lively.directory, device="cpu", dtype="bfloat16")
    monkeypatch.chdir(tmp_path)
    assert not kvtool.prefill("0.txt", model=other, store=store).problems
    both = [evaluate(s, "a.txt", model=lively, recipes=["kivi:bits=2"], scope=KL) for s in (documents, store)]
    fresh = evaluate(store, "a.txt", model=lively, recipes=["kivi:bits=2"], scope=KL, fresh=True)
    assert (
        of(both[0], "kivi:bits=2")["kl"] == of(both[1], "kivi:bits=2")["kl"] == of(fresh, "kivi:bits=2")["kl"]
    )


def test_a_cache_that_is_no_numbers_is_said(
    documents: kvtool.Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
        assert of(found, "overflown")["error"] is None
        assert any(note.startswith("overflown: its cache") for note in found["notes"])
        assert [(c["candidate"], c["passed"]) for c in found["gate"]] == [("nf4", True), ("overflown", False)]


def test_progress_adds_up(
    documents: kvtool.Store,
    lively: kvtool.Model,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))

    def run() -> list[Progress]:
        seen: list[Progress] = []
        evaluate(
            documents,
            model=lively,
            recipes=["nf4"],
            questions=questions,
            scope=SMALL,
            on_progress=lambda p: seen.append(copy.copy(p)),
        )
        return seen

    for seen in (run(), run()):
        assert [p.done for p in seen] == sorted(p.done for p in seen)
        assert all(p.done <= p.total for p in seen)
        assert seen[-1].done == seen[-1].total


def test_times_alone_predict_nothing(documents: kvtool.Store, lively: kvtool.Model) -> None:
    found = evaluate(documents, model=lively, recipes=["nf4"], scope=Scope(metrics=("times",), repeats=1))
    assert of(found, "nf4")["kl"] is None
    assert of(found, "nf4")["times"]["ttft_ratio"]["value"] > 0
    assert found["times"]["tokens"] == max(document.n_tokens for document in documents.values())


def test_haystacks_that_the_model_cannot_hold_are_left_out(
    documents: kvtool.Store, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "short", max_position_embeddings=1600)
    model = kvtool.load_model(tmp_path / "short", device="cpu")
    (tmp_path / "d.txt").write_text(prose(200, 3))
    monkeypatch.chdir(tmp_path)
    store = kvtool.Store("store")
    assert not kvtool.prefill("d.txt", model=model, store=store).problems
    found = evaluate(store, model=model, recipes=["nf4"], scope=Scope(metrics=("retrieval",), haystacks=1))
    assert found["settings"]["lengths"] == [512, 1024]


def test_an_interrupted_run_goes_on(
    documents: kvtool.Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path))
    recipes = ["kivi:bits=4", "nf4"]

    def stop(progress: Progress) -> None:
        if progress.measured == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(documents, model=lively, recipes=recipes, scope=KL, on_progress=stop)
    seen: list[Progress] = []
    resumed = evaluate(
        documents, model=lively, recipes=recipes, scope=KL, on_progress=lambda p: seen.append(copy.copy(p))
    )
    assert (seen[-1].kept, seen[-1].measured) == (4, 5)
    assert seen[-1].done == seen[-1].total
    fresh = evaluate(documents, model=lively, recipes=recipes, scope=KL, fresh=True)
    assert [c["kl"] for c in fresh["candidates"]] == [c["kl"] for c in resumed["candidates"]]
    assert any("kept from an earlier run" in note for note in resumed["notes"])
    assert not any("kept from an earlier run" in note for note in fresh["notes"])


def test_a_wider_run_adds_to_a_narrow_one(
    documents: kvtool.Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path))
    evaluate(documents, model=lively, recipes=["nf4"], scope=KL)
    seen: list[Progress] = []
    evaluate(
        documents, model=lively, recipes=["nf4", "lossless"], scope=KL, on_progress=lambda p: seen.append(p)
    )
    assert (seen[-1].kept, seen[-1].measured) == (6, 3)


def test_a_conversation_is_asked_turn_by_turn(
    documents: kvtool.Store, lively: kvtool.Model, questions: Path
) -> None:
    scope = Scope(metrics=("answers",), answer_tokens=6)
    found = evaluate(documents, model=lively, recipes=["kivi:bits=2"], questions=questions, scope=scope)
    answers = of(found, "kivi:bits=2")["answers"]
    assert answers["asked"] == 5
    assert [(turn["turn"], turn["asked"]) for turn in answers["turns"]] == [(1, 3), (2, 1), (3, 1)]
    assert of(found, "raw")["answers"]["f1"]["value"] == 1.0
    for example in answers["examples"]:
        assert example["f1"] < 1
        assert example["raw"] != example["answer"]


def test_a_question_about_a_split_document_names_the_segment(
    lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.txt").write_text(prose(120, 1))
    monkeypatch.chdir(tmp_path)
    store = kvtool.Store("store")
    kvtool.prefill("long.txt", model=lively, store=store, segment_tokens=300)
    assert len(store["long.txt"].segments) > 1
    asked = {"document": "long.txt", "question": "Who?"}
    scope = Scope(metrics=("answers",), answer_tokens=2)
    for segment, message in ((None, "name one with"), (9, "asks about segment 9")):
        line = asked if segment is None else {**asked, "segment": segment}
        (tmp_path / "questions.jsonl").write_text(json.dumps(line))
        with pytest.raises(kvtool.KvtoolError, match=message):
            evaluate(store, model=lively, recipes=["nf4"], questions="questions.jsonl", scope=scope)
    (tmp_path / "questions.jsonl").write_text(json.dumps({**asked, "segment": 1}))
    found = evaluate(store, model=lively, recipes=["nf4"], questions="questions.jsonl", scope=scope)
    assert [(d["name"], d["segment"]) for d in found["documents"]] == [("long.txt", 1)]


def test_a_model_too_small_for_every_haystack_is_named(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "short", max_position_embeddings=600)
    model = kvtool.load_model(tmp_path / "short", device="cpu")
    (tmp_path / "d.txt").write_text(prose(60, 3))
    monkeypatch.chdir(tmp_path)
    store = kvtool.Store("store")
    assert not kvtool.prefill("d.txt", model=model, store=store).problems
    with pytest.raises(kvtool.KvtoolError, match="--lengths 512: short has a context of 600"):
        evaluate(store, model=model, recipes=["nf4"], scope=Scope(metrics=("retrieval",)))


def test_documents_are_drawn_by_the_seed(documents: kvtool.Store, lively: kvtool.Model) -> None:
    def names(seed: int) -> list[str]:
        scope = Scope(metrics=("kl",), documents=1, context=64, tokens=8, seed=seed)
        found = evaluate(documents, model=lively, recipes=["kivi"], scope=scope)
        assert any("1 of 3 segments were drawn" in note for note in found["notes"])
        return [document["name"] for document in found["documents"]]

    assert names(0) == names(0)
    assert len({name for seed in range(8) for name in names(seed)}) > 1


class Refused(Exception):
    """Something long was started."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipes": ["kiwi"]}, "kiwi"),
        ({"recipes": ["kivi:bits=99"]}, "bits is 99"),
        ({"recipes": ["kivi:bits"]}, "expected NAME=VALUE"),
        ({"recipes": ["kivi", "recent=32"]}, "behind colons"),
        ({"recipes": ["nf4"], "names": ["nowhere.txt"]}, "is not in the store"),
        ({"recipes": ["nf4"], "names": ["a.txt"], "scope": Scope(tokens=2000)}, "a.txt: segment 0 has"),
        ({"recipes": ["nf4"], "scope": Scope(tokens=2000)}, "2 more are as short"),
        ({"recipes": ["nf4"], "scope": Scope(lengths=(100_000,))}, "has a context of 4096"),
        ({"recipes": ["nf4"], "scope": Scope(lengths=(60,))}, "length 60"),
        ({"recipes": ["nf4"], "questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"recipes": ["nf4"], "gate": Gate(min_answers=0.9)}, "--min-answers"),
        ({"recipes": ["nf4"], "gate": Gate(max_ratio_loss=0.1)}, "--baseline"),
        ({"recipes": ["nf4"], "gate": Gate(max_kl=0.1), "scope": Scope(metrics=("times",))}, "--max-kl"),
        ({"recipes": ["nf4"], "scope": Scope(metrics=("answers",))}, "nothing to measure"),
        ({"recipes": ["nf4"], "questions": "q.jsonl", "scope": KL}, "--metrics leaves out answers"),
        ({"recipes": ["nf4"], "gate": Gate(max_ratio_loss=0.1, baseline={"a": 1.0})}, "has no nf4, only a"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_named_before_anything_long(
    documents: kvtool.Store,
    lively: kvtool.Model,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    def start(*_: Any) -> None:
        raise Refused

    monkeypatch.setattr(Runner, "measure", start)
    monkeypatch.setattr(Runner, "kv", start)
    with pytest.raises(kvtool.KvtoolError, match=message):
        evaluate(documents, arguments.pop("names", None), model=lively, **{"scope": SMALL, **arguments})


def test_a_candidate_that_cannot_be_used_is_named_at_once(
    documents: kvtool.Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cache: kvtool.DocumentCache, bench: Any) -> None:
        raise kvtool.KvtoolError(None, "its heads are odd")

    monkeypatch.setattr(Runner, "measure", lambda *_: pytest.fail("something long was started"))
    with pytest.raises(kvtool.KvtoolError, match=r"odd one: cannot be used with lively.*: its heads are odd"):
        evaluate(documents, model=lively, recipes=["nf4"], scope=KL, others=[Broken("odd one", fail)])


def test_another_model_is_refused(documents: kvtool.Store, tiny: kvtool.Model) -> None:
    with pytest.raises(kvtool.KvtoolError, match="another model"):
        evaluate(documents, model=tiny, recipes=["nf4"], scope=KL)
