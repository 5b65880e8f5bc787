"""What the suites share: a tiny random model with its tokenizer, random KV, a store of three documents."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

# Triton decides for good, when it is first imported, whether its own functions can be interpreted, as the kernels' tests
# want them; transformers, which the next lines import, imports it.
with pytest.MonkeyPatch.context() as patch, suppress(ImportError):
    patch.setenv("TRITON_INTERPRET", "1")
    importlib.import_module("triton.language")

import kvtool
from kvtool.codecs import KV, LayerKV, Recipe, recipe_registry, stage_registry
from kvtool.store.local import LocalStore
from kvtool.testing.tiny_model import save_model

# Whatever else a machine is doing, no test fails for taking long.
hypothesis.settings.register_profile("kvtool", deadline=None)
hypothesis.settings.load_profile("kvtool")

CACHE_DIR = os.environ.get("KVTOOL_CACHE_DIR")
TEXTS = {
    "docs/a.md": "# Apples\n\nThe red apple costs three crowns.\n",
    "docs/b.md": "# Bread\n\nThe baker opens at six.\n\nThe rye loaf is the best.\n",
    "c.txt": "Seven ships left the harbour.\n",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that quick ones fill the end where several processes share the files."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run: a test that fails does so again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting, cache or network of the machine is seen; subprocesses inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("KVTOOL_")]:
            patch.delenv(name)
        patch.setenv("KVTOOL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Calibrations are of what a test gives, not of the texts that come with kvtool as well.
        patch.setattr("kvtool.calibration.calibrate.sample_texts", tuple)
        patch.setenv("NO_COLOR", "1")
        # Many small matrices: threads would only wait for each other, for very long where cores are shared.
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's directory. Copy it before changing anything."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """``save_model``, for tests that need another model than the tiny one."""
    return save_model


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> kvtool.Model:
    return kvtool.load_model(tiny_dir, device="cpu")


@pytest.fixture(scope="session")
def embedded() -> kvtool.Model:
    """The embedded model, converted once for all runs in the user's own cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        if CACHE_DIR:
            patch.setenv("KVTOOL_CACHE_DIR", CACHE_DIR)
        else:
            patch.delenv("KVTOOL_CACHE_DIR", raising=False)
        model = kvtool.load_model()
        _ = model.fingerprint
    return model


@pytest.fixture(scope="session")
def make_kv() -> Callable[..., KV]:
    """Random KV: ``layers`` × keys ``[heads, tokens, size]`` and values ``[heads, tokens, value_size]``."""

    def make(
        *,
        layers: int = 2,
        heads: int = 2,
        tokens: int = 5,
        size: int = 4,
        value_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        start: int = 3,
        seed: int = 0,
    ) -> KV:
        generator = torch.Generator().manual_seed(seed)

        def tensor(channels: int) -> torch.Tensor:
            return torch.randn(heads, tokens, channels, generator=generator).to(dtype)

        positions = torch.arange(start, start + tokens)
        made = [LayerKV(tensor(size), tensor(value_size or size), positions) for _ in range(layers)]
        ids = torch.randint(0, 256, (tokens,), generator=generator)
        return KV(tuple(made), ids, {"rope_theta": 10000.0, "rope_type": "default"})

    return make


def write_corpus(directory: Path) -> Path:
    for name, text in TEXTS.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ``docs/a.md``, ``docs/b.md`` and ``c.txt`` in it."""
    monkeypatch.chdir(tmp_path)
    return write_corpus(tmp_path)


@pytest.fixture(scope="session")
def prefilled(tiny: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the corpus, raw, by the tiny model; not to be written to."""
    place = write_corpus(tmp_path_factory.mktemp("prefilled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        report = kvtool.prefill(["docs", "c.txt"], model=tiny, store=LocalStore("kv-store"))
    assert not report.problems
    return place / "kv-store"


@pytest.fixture
def store(prefilled: Path, corpus: Path) -> LocalStore:
    """The prefilled store, copied beside the corpus as ``kv-store``."""
    return LocalStore(Path(shutil.copytree(prefilled, corpus / "kv-store")).relative_to(corpus))


@pytest.fixture
def centred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """The recipe of ``plugins/centred.py``, installed for as long as it lasts, in other processes too."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).parent / "plugins" / "centred.py", folder)
    info = folder / "centred-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: centred\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[kvtool.recipes]\ncentred = centred:RECIPES\n[kvtool.stages]\ncentred = centred:Centred\n"
    )
    before = dict(stage_registry._known())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        stage_registry._discover.cache_clear()
        recipe_registry.recipes.cache_clear()
        yield recipe_registry.recipe("centred")
    stage_registry._stages.clear()
    stage_registry._stages.update(before)
    recipe_registry.recipes.cache_clear()
    del sys.modules["centred"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        # Where tests are run for others, a missing browser must not look like a pass.
        leave = pytest.fail if os.environ.get("CI") else pytest.skip
        leave("no chromium on the PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()
