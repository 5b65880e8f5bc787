"""The calibration that comes with kvtool: of the embedded model, small, and taken before one is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kvtool
from kvtool.calibration.bundled_calibrations import FOLDER, bundled, entries, is_bundled
from kvtool.calibration.lookup import finder
from kvtool.codecs import Calibration
from kvtool.codecs.recipe import PRESETS
from kvtool.codecs.recipe_registry import recipe, recipes
from kvtool.store.local import LocalStore

MOST = 10_000_000
"""Bytes of a calibration that comes with kvtool."""


def test_all_files_are_listed_and_whole() -> None:
    others = ["index.json", "NOTICE.md", "texts.json.zst"]
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted([*others, *(e.file for e in entries())])
    for entry in entries():
        data = (FOLDER / entry.file).read_bytes()
        assert len(data) <= MOST
        calibration = Calibration.from_bytes(data)
        assert calibration.method == entry.method
        assert calibration.model in entry.fingerprints
        (chosen,) = (one for one in recipes().values() if one.calibration == entry.method)
        assert chosen.dial is not None
        for preset in chosen.dial.presets:
            measured = chosen.dial.measured(preset, calibration)
            assert measured is not None
            assert measured.met
        assert chosen.build(calibration).calibrations == (calibration,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_of_the_embedded_model_in_any_dtype(embedded: kvtool.Model, dtype: str) -> None:
    fingerprint = replace(embedded.identity, dtype=dtype).fingerprint
    found = bundled("klt", fingerprint)
    assert found is not None
    assert found.model == fingerprint
    assert is_bundled(found)
    assert PRESETS in found.facts
    assert bundled("kvtc", fingerprint) is None
    assert bundled("klt", "0" * 64) is None
    assert not is_bundled(replace(found, facts={**found.facts, "source": {}}))


TEXT = "The harbour master writes down every ship that enters: its name, its flag, its cargo and where it came from. "


@pytest.fixture
def harbour(embedded: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    monkeypatch.chdir(tmp_path)
    Path("harbour.txt").write_text(TEXT * 12)
    store = LocalStore("kv-store")
    kvtool.prefill(["harbour.txt"], model=embedded, store=store)
    return store


@pytest.mark.slow
def test_compressing_starts_at_once(harbour: LocalStore, embedded: kvtool.Model) -> None:
    said: list[str] = []
    report = kvtool.compress(harbour, model=embedded, say=said.append)
    assert report.bits_per_value < 0.8
    assert [line for line in said if "comes with kvtool" in line]
    assert not [line for line in said if "making one" in line]
    (digest,) = harbour.calibrations
    assert is_bundled(harbour.calibrations[digest])
    raw, coded = (harbour.read("harbour.txt", variant=name) for name in ("raw", "klt"))
    error = [
        (a.keys.float() - b.keys.float()).norm() / a.keys.float().norm()
        for a, b in zip(raw.layers, coded.layers, strict=True)
    ]
    assert torch.tensor(error).mean() < 0.5
    said.clear()
    kvtool.compress(harbour, model=embedded, replace=True, say=said.append)
    assert not [line for line in said if "comes with kvtool" in line]


def test_one_of_the_store_comes_first(harbour: LocalStore, embedded: kvtool.Model) -> None:
    ready = bundled("klt", embedded.fingerprint)
    assert ready is not None
    assert finder(harbour, ["harbour.txt"])(recipe("klt")) == ready
    own = replace(ready, facts={**ready.facts, "source": {"tokens": 1}})
    with harbour.writing():
        harbour.put_calibration(own)
    assert finder(harbour, ["harbour.txt"])(recipe("klt")) == own


def test_others_make_one(store: LocalStore, tiny: kvtool.Model) -> None:
    asked: list[str] = []

    def make(recipe: object, fingerprint: str, name: str) -> Calibration:
        asked.append(fingerprint)
        return Calibration("klt", {}, {})

    finder(store, list(store), make=make)(recipe("klt"))
    assert asked == [tiny.fingerprint]
