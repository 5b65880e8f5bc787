"""Places where remote stores come from, and a cache directory of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

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
