"""Progress, and what an earlier run measured."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

import kvtool
from kvtool.errors import StoreError
from kvtool.evaluation import run
from kvtool.evaluation.evaluation import evaluate
from kvtool.evaluation.run import OnProgress, Progress

from .conftest import KL, SMALL


def copies(seen: list[Progress]) -> OnProgress:
    """Adds a copy of each progress to ``seen``."""
    return lambda progress: seen.append(copy.copy(progress))


def test_progress_adds_up(
    documents: kvtool.Store,
    lively: kvtool.Model,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))

    for _ in range(2):
        seen: list[Progress] = []
        options = {"questions": questions, "scope": SMALL, "on_progress": copies(seen)}
        evaluate(documents, model=lively, recipes=["nf4"], **options)
        assert [p.done for p in seen] == sorted(p.done for p in seen)
        assert all(p.done <= p.total for p in seen)
        assert seen[-1].done == seen[-1].total


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
    resumed = evaluate(documents, model=lively, recipes=recipes, scope=KL, on_progress=copies(seen))
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
    recipes = ["nf4", "lossless"]
    evaluate(documents, model=lively, recipes=recipes, scope=KL, on_progress=copies(seen))
    assert (seen[-1].kept, seen[-1].measured) == (6, 3)


def test_a_document_that_is_replaced_meanwhile_is_no_measurement(
    documents: kvtool.Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its other tokens, or fewer, would be kept as the measurement of what was planned."""
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path))
    read = run.first_tokens
    monkeypatch.setattr(run, "first_tokens", lambda store, ref, count: read(store, ref, count - 1))
    with pytest.raises(
        StoreError, match=r"\.txt: was replaced while it was being measured; measure it again"
    ):
        evaluate(documents, model=lively, recipes=["nf4"], scope=KL)
    assert not [path for path in (tmp_path / "evaluations").rglob("*") if path.is_file()]
