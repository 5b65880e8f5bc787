"""What the tests of calibration share: a model with something to lose, calibrated on enough text to measure its presets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kvtool
from kvtool.codecs import Calibration
from kvtool.store.local import LocalStore


@pytest.fixture(scope="session")
def lively_dir(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "lively", initializer_range=0.3)


@pytest.fixture(scope="session")
def lively(lively_dir: Path) -> kvtool.Model:
    """Weights so large that attention looks somewhere in particular."""
    return kvtool.load_model(lively_dir, device="cpu")


@pytest.fixture(scope="session")
def measured(
    lively: kvtool.Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocalStore, Calibration]:
    """A store with ``a.txt``, long enough to hold something back, and its calibration; not to be written to."""
    folder = tmp_path_factory.mktemp("measured")
    text = "\n".join(f"Paragraph {n} is about the number {n * 37 % 101}, and so on." for n in range(45))
    (folder / "a.txt").write_text(text)
    store = LocalStore(folder / "kv-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        kvtool.prefill(["a.txt"], model=lively, store=store)
    return store, kvtool.calibrate(store, model=lively)
