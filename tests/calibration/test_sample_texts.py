"""Texts that come with kvtool, and calibrations of stores that have too few of their own."""

from __future__ import annotations

import pytest

import kvtool
from kvtool.calibration.sample_texts import sample_texts
from kvtool.store.local import LocalStore


@pytest.mark.usefixtures("centred")
def test_a_small_store_is_filled_up_with_texts_that_come_with_kvtool(
    store: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = kvtool.calibrate(store, model=tiny, recipe="centred", tokens=2000)
    monkeypatch.setattr("kvtool.calibration.calibrate.sample_texts", sample_texts)
    filled = kvtool.calibrate(store, model=tiny, recipe="centred", tokens=2000)
    source, before = filled.facts["source"], own.facts["source"]
    assert isinstance(source, dict)
    assert isinstance(before, dict)
    assert source["tokens"] == 2000
    assert source["sampled"] == 2000 - before["tokens"]
    named = kvtool.calibrate(store, list(store), model=tiny, recipe="centred", tokens=2000)
    assert named.facts["source"] == before
    fewer = kvtool.calibrate(store, model=tiny, recipe="centred", tokens=before["tokens"])
    assert "sampled" not in fewer.facts["source"]


def test_the_texts_that_come_with_kvtool_are_of_many_kinds() -> None:
    texts = sample_texts()
    assert len(texts) >= 40
    assert all(len(text) > 1000 for text in texts)
    for part in ("def ", "function", "#define", " droit ", "LORD", "License"):
        assert any(part in text for text in texts), part
