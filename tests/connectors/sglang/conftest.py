"""Stores, and servers as far as their storage goes. ``make engines`` makes the environment that has sglang."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Pictures(ModuleType):
    """A package that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Any


if importlib.util.find_spec("sglang") and not importlib.util.find_spec("torchvision"):
    # sglang imports names from it for pictures. It has no build that loads beside torch's for CPUs.
    from transformers.utils import is_torchvision_available

    assert not is_torchvision_available()  # Remembered: transformers is to find no pictures later either.
    for name in (
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.functional",
        "torchvision.io",
    ):
        package = Pictures(name)
        package.__path__, package.__spec__ = [], ModuleSpec(name, None, is_package=True)
        sys.modules[name] = package


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of tiny random models: ``tiny`` with every kind of variant, two with latent attention, and another Llama."""
    from tests.connectors.sglang.stores import make_stores

    return make_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """``serve(name, layout=…)``: a server of one of the models as far as its storage goes, its pool on the CPU."""
    from kvtool.store import prefix_index
    from tests.connectors.sglang.servers import Served

    monkeypatch.setattr(prefix_index, "FRESH", 0.0)
    served: list[Served] = []

    def serve(name: str = "tiny", **changes: Any) -> Served:
        served.append(Served.start(folder, name, **changes))
        return served[-1]

    yield serve
    for one in served:
        one.storage.close()
