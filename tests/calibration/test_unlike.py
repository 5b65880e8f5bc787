"""Documents that a calibration does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import kvtool
from kvtool.codecs import Calibration
from kvtool.codecs.transform import klt
from kvtool.store.local import LocalStore


def test_a_document_that_falls_back_is_reported_with_what_it_takes(
    measured: tuple[LocalStore, Calibration],
    lively: kvtool.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = LocalStore(shutil.copytree(measured[0].root, tmp_path / "kv-store"))
    like = kvtool.compress(store, recipe="klt", model=lively, step=0.1, name="like")
    assert not like.unlike
    monkeypatch.setattr(klt, "FAR", -1.0)
    report = kvtool.compress(store, recipe="klt", model=lively, step=0.1, name="unlike")
    assert list(report.unlike) == ["a.txt"]
    assert report.unlike["a.txt"].bits_per_value == report.bits_per_value > like.bits_per_value
    assert report.others_bits_per_value is None
