"""Inputs of stages that are measured ahead of time, and kept in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.errors import KvtoolError, MismatchError, UsageError
from kvtool.store.local import LocalStore
from kvtool.store.manifest import INPUTS, RAW

NAME = "docs/b.md"
RECIPES = ("h2o", "sirllm", "duoattention")
SMALL = {"keep": 0.5, "first": 1, "last": 2}


def prefilled(tiny: kvtool.Model, root: Path, **options: Any) -> LocalStore:
    store = LocalStore(root)
    assert not kvtool.prefill(["docs"], model=tiny, store=store, **options).problems
    return store


@pytest.fixture
def collected(tiny: kvtool.Model, corpus: Path) -> LocalStore:
    return prefilled(tiny, corpus / "with", collect=RECIPES)


def compress(store: LocalStore, recipe: str, **options: Any) -> bytes:
    assert kvtool.compress(store, NAME, recipe=recipe, **SMALL, **options).compressed == [NAME]
    return store.open(NAME, recipe).path.read_bytes()


def refused() -> kvtool.Model:
    raise AssertionError("no model is needed")


@pytest.mark.parametrize("recipe", RECIPES)
def test_compress_runs_no_model_and_gives_the_same_bytes(
    recipe: str, collected: LocalStore, tiny: kvtool.Model, corpus: Path
) -> None:
    said: list[str] = []
    plain = prefilled(tiny, corpus / "without")
    assert compress(collected, recipe, model=refused, say=said.append) == compress(
        plain, recipe, model=tiny, say=said.append
    )
    (line,) = said
    assert line.startswith("measuring ")
    assert "prefill --collect" in line


def test_what_is_missing_is_measured(collected: LocalStore, tiny: kvtool.Model) -> None:
    with pytest.raises(UsageError, match=r"squeezeattention.*hidden_cosine"):
        kvtool.compress(collected, NAME, recipe="squeezeattention", model=lambda: None)  # type: ignore[arg-type, return-value]
    assert compress(collected, "squeezeattention", model=tiny)
    # Of what is collected again, only the rest is measured; what was there stays.
    before = collected[NAME].segments[0].variants[INPUTS]
    report = kvtool.prefill(["docs"], model=tiny, store=collected, collect=["squeezeattention"])
    assert NAME in report.collected
    after = collected[NAME].segments[0].variants[INPUTS]
    assert set(after.recipe["inputs"]) == {*before.recipe["inputs"], "hidden_cosine"}
    assert not kvtool.prefill(["docs"], model=tiny, store=collected, collect=RECIPES).collected


def test_they_are_files_of_the_store(
    collected: LocalStore, tiny: kvtool.Model, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = collected[NAME]
    assert document.variants == [RAW]
    variant = document.segments[0].variants[INPUTS]
    artifact = collected.open_artifact(variant)
    artifact.verify()
    assert artifact.contents.geometry.held_elements == 0
    path = collected.path_of(variant)
    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    path.write_bytes(broken)
    with pytest.raises(KvtoolError):
        collected.open_artifact(variant).verify()


def test_they_are_no_cache(collected: LocalStore, tiny: kvtool.Model) -> None:
    with pytest.raises(MismatchError, match=r"holds .*received.* no cache"):
        collected.load(NAME, tiny, INPUTS)
    with pytest.raises(UsageError, match="kept for what prefill made"):
        kvtool.compress(collected, NAME, recipe="kivi", name=INPUTS)


@pytest.mark.parametrize(("recipe", "match"), [("kivi", "needs nothing"), ("none", "none")])
def test_recipes_that_need_nothing_are_refused(
    recipe: str, match: str, tiny: kvtool.Model, corpus: Path
) -> None:
    with pytest.raises(UsageError, match=f"--collect {recipe}.*{match}"):
        prefilled(tiny, corpus / "store", collect=[recipe])
