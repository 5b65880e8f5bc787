"""Memory that calibrating takes is said, and refused where there is not enough."""

from __future__ import annotations

import dataclasses

import pytest

import kvtool
from kvtool.calibration import memory
from kvtool.calibration.calibrate import calibrate
from kvtool.calibration.learning import Progress
from kvtool.codecs import Recipe
from kvtool.codecs.recipe_registry import recipes
from kvtool.errors import UsageError
from kvtool.store.local import LocalStore


def test_samples_beyond_the_bound_are_refused(
    store: LocalStore, tiny: kvtool.Model, centred: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "KEPT_BYTES", 10_000)
    message = r"--tokens: .* tokens .* give 78 or fewer to kvtool calibrate, or .*--recipe kivi"
    with pytest.raises(UsageError, match=message):
        calibrate(store, model=tiny, recipe="centred")
    assert calibrate(store, model=tiny, recipe="centred", tokens=78)


def test_more_than_is_free_is_refused_after_the_first_sample(
    store: LocalStore, tiny: kvtool.Model, centred: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = dataclasses.replace(centred, fit_nbytes=lambda geometry, tokens: 7_000_000_000 + tokens)
    monkeypatch.setitem(recipes(), "centred", greedy)
    monkeypatch.setattr(memory, "available_memory", lambda: 2_000_000_000)
    seen: list[int] = []
    message = (
        r"--tokens: .* tokens take 7\.0 GB .* and 2\.0 are free; free memory, give fewer .*--recipe kivi"
    )
    with pytest.raises(UsageError, match=message):
        calibrate(store, model=tiny, recipe="centred", on_progress=lambda p: seen.append(p.tokens))
    assert seen == []
    assert not store.calibrations


def test_what_it_takes_is_known_from_the_first_sample_on(
    store: LocalStore, tiny: kvtool.Model, centred: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes(), "centred", dataclasses.replace(centred, fit_nbytes=lambda *_: 1000))
    seen: list[Progress] = []
    calibrate(store, model=tiny, recipe="centred", on_progress=lambda p: seen.append(dataclasses.replace(p)))
    one = store.read(next(iter(store)))
    by_token = 2 * one.n_elements // one.n_tokens
    assert {progress.nbytes for progress in seen} == {1000 + by_token * seen[0].tokens_total}
