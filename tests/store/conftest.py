"""Places where remote stores come from, and a cache directory of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import kvtool
from kvtool.codecs import Calibration, Recipe, Sample
from kvtool.store.local import LocalStore
from tests.loopback import endpoint, objects

pytest.register_assert_rewrite("kvtool.testing.backends")

__all__ = ["endpoint", "objects"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calibrated(store: LocalStore, tiny: kvtool.Model, centred: Recipe) -> Calibration:
    """What the variant centred of all documents is compressed with."""
    assert centred.fit
    made = centred.fit([Sample(store.read(name)) for name in store]).made(
        model=tiny.fingerprint, source=list(store)
    )
    with store.writing():
        store.put_calibration(made)
    kvtool.compress(store, recipe="centred")
    return made


def simple(value: float = 1.0, method: str = "mean", model: str = "m") -> Calibration:
    return Calibration(method, {"model": model}, {"x": torch.full((3,), value)})


def aged(store: LocalStore, *calibrations: Calibration) -> None:
    """Each was written a second after the one before it."""
    for second, calibration in enumerate(calibrations, 1_000_000):
        store.put_calibration(calibration)
        os.utime(store.calibrations.path_of(calibration.digest), (second, second))


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
