"""Which candidates, documents and contexts are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.codecs import CodecError, Pipeline, Recipe, Sample
from kvtool.errors import UsageError
from kvtool.evaluation.evaluation import evaluate
from kvtool.measurement.scope import Scope
from kvtool.store.local import LocalStore

from .conftest import KL, of, prose


def copy_of(store: LocalStore, folder: Path) -> LocalStore:
    return LocalStore(shutil.copytree(store.root, folder / "store"))


def evaluated(store: LocalStore, model: kvtool.Model, *recipes: str, **options: Any) -> Any:
    """KL of a.txt over the caches of ``recipes``."""
    return evaluate(store, "a.txt", model=model, recipes=recipes, scope=KL, **options)


def test_variants_are_compared_by_default(
    documents: LocalStore, lively: kvtool.Model, tmp_path: Path
) -> None:
    store = copy_of(documents, tmp_path)
    with pytest.raises(kvtool.KvtoolError, match="nothing to compare"):
        evaluate(store, model=lively, scope=KL)
    kvtool.compress(store, recipe="kivi", bits=4, name="small")
    found = evaluate(store, model=lively, scope=KL)
    assert [(c["name"], c["family"]) for c in found["candidates"]] == [("raw", "raw"), ("small", "kivi")]
    kvtool.compress(store, "a.txt", recipe="kivi", bits=2, name="small", replace=True)
    with pytest.raises(kvtool.KvtoolError, match="made otherwise"):
        evaluate(store, model=lively, scope=KL)


def test_a_variant_whose_stages_are_not_here_is_refused(
    documents: LocalStore, lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be measured with another variant's pipeline."""
    store = copy_of(documents, tmp_path)
    kvtool.compress(store, recipe="kivi", bits=4)
    kvtool.compress(store, recipe="nf4", name="plugin")
    known = Pipeline.from_config

    def without_plugins(config: Any, *calibrations: Any) -> Pipeline:
        if "blockwise" in json.dumps(config):
            raise CodecError("stage 'blockwise' is not registered")
        return known(config, *calibrations)

    monkeypatch.setattr(Pipeline, "from_config", without_plugins)
    message = r"its variant 'plugin' cannot be made here \(stage 'blockwise'"
    with pytest.raises(kvtool.KvtoolError, match=message):
        evaluate(store, model=lively, scope=KL)


def test_a_recipe_is_measured_with_the_calibration_that_the_store_holds(
    documents: LocalStore, lively: kvtool.Model, tmp_path: Path, centred: Recipe
) -> None:
    assert centred.fit
    store = copy_of(documents, tmp_path)
    with pytest.raises(kvtool.KvtoolError, match="'centred': needs a calibration"):
        evaluated(store, lively, "centred:bits=8")
    calibration = centred.fit([Sample(store.read("a.txt"))]).made(model=lively.fingerprint, source=None)
    kvtool.compress(store, "a.txt", recipe="centred", bits=8, calibration=calibration)
    measured = [
        evaluate(store, "a.txt", model=lively, recipes=recipes, scope=KL)["candidates"][1]
        for recipes in (["centred:bits=8"], ["centred:bits=1"], None)
    ]
    kl = [one["kl"]["value"] for one in measured]
    assert kl[0] == kl[2] < kl[1]


def test_another_models_documents_in_the_store_do_not_matter(
    documents: LocalStore, lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their prefix has the same tokens, but other keys and values."""
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    store = copy_of(documents, tmp_path)
    (tmp_path / "0.txt").write_text(prose(60, 9))
    other = kvtool.load_model(lively.directory, device="cpu", dtype="bfloat16")
    monkeypatch.chdir(tmp_path)
    assert not kvtool.prefill("0.txt", model=other, store=store).problems
    alone, together = (evaluated(s, lively, "kivi:bits=2") for s in (documents, store))
    fresh = evaluated(store, lively, "kivi:bits=2", fresh=True)
    kl = [of(evaluation, "kivi:bits=2")["kl"] for evaluation in (alone, together, fresh)]
    assert kl[0] == kl[1] == kl[2]


def test_times_alone_predict_nothing(documents: LocalStore, lively: kvtool.Model) -> None:
    found = evaluate(documents, model=lively, recipes=["nf4"], scope=Scope(metrics=("times",), repeats=1))
    assert of(found, "nf4")["kl"] is None
    assert of(found, "nf4")["times"]["ttft_speedup"]["value"] > 0
    assert found["times"]["tokens"] == max(document.n_tokens for document in documents.values())


def test_haystacks_that_the_model_cannot_hold_are_left_out(
    documents: LocalStore, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "short", max_position_embeddings=1600)
    model = kvtool.load_model(tmp_path / "short", device="cpu")
    (tmp_path / "d.txt").write_text(prose(200, 3))
    monkeypatch.chdir(tmp_path)
    store = LocalStore("store")
    assert not kvtool.prefill("d.txt", model=model, store=store).problems
    found = evaluate(store, model=model, recipes=["nf4"], scope=Scope(metrics=("retrieval",), haystacks=1))
    assert found["settings"]["lengths"] == [512, 1024]


def test_a_conversation_is_asked_turn_by_turn(
    documents: LocalStore, lively: kvtool.Model, questions: Path
) -> None:
    scope = Scope(metrics=("answers",), answer_tokens=6)
    found = evaluate(documents, model=lively, recipes=["kivi:bits=2"], questions=questions, scope=scope)
    answers = of(found, "kivi:bits=2")["answers"]
    assert answers["questions"] == 5
    assert [(turn["turn"], turn["questions"]) for turn in answers["turns"]] == [(1, 3), (2, 1), (3, 1)]
    assert of(found, "raw")["answers"]["f1"]["value"] == 1.0
    for example in answers["examples"]:
        assert example["f1"] < 1
        assert example["raw"] != example["answer"]


def test_a_question_about_a_split_document_names_the_segment(
    lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.txt").write_text(prose(120, 1))
    monkeypatch.chdir(tmp_path)
    store = LocalStore("store")
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


def test_documents_are_drawn_by_the_seed(documents: LocalStore, lively: kvtool.Model) -> None:
    def names(seed: int) -> list[str]:
        scope = Scope(metrics=("kl",), documents=1, context=64, tokens=8, seed=seed)
        found = evaluate(documents, model=lively, recipes=["kivi"], scope=scope)
        assert any("1 of 3 segments were drawn" in note for note in found["notes"])
        return [document["name"] for document in found["documents"]]

    assert names(0) == names(0)
    assert len({name for seed in range(8) for name in names(seed)}) > 1


def test_raw_and_variants_are_named_among_recipes(
    documents: LocalStore, lively: kvtool.Model, tmp_path: Path
) -> None:
    store = copy_of(documents, tmp_path)
    kvtool.compress(store, "a.txt", recipe="kivi", bits=4, name="mine")
    report = evaluate(store, "a.txt", model=lively, recipes=["raw", "mine", "kivi:bits=2"], scope=KL)
    assert [candidate["name"] for candidate in report["candidates"]] == ["raw", "mine", "kivi:bits=2"]
    with pytest.raises(UsageError, match="other"):
        evaluate(store, "a.txt", model=lively, recipes=["raw", "other"], scope=KL)
