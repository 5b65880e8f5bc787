"""Stores of tiny models, made once for all tests of vLLM."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import kvtool
from kvtool.artifact.write import raw_content
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW
from tests.connectors.vllm.models import save

SAMPLES = Path(__file__).parents[3] / "samples"
SIZES = {"harbour.md": 900, "bakery.md": 500, "railway.md": 650, "orchard.txt": 300}
"""Documents, of so many characters each."""

COMPRESSED = ["kivi", "cachegen", "klt"]


@dataclass(frozen=True)
class Case:
    """A model, and a store of its that holds documents."""

    directory: Path
    model: kvtool.Model
    store: LocalStore

    def tokens(self, name: str) -> list[int]:
        """Those of a document, after its prefix."""
        return [int(token) for part in self.store.parts(name) for token in part.token_ids]

    def encode(self, text: str) -> list[int]:
        return list(self.model.tokenizer(text, add_special_tokens=False).input_ids)

    def prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Every document with every question after it."""
        return [self.tokens(name) + self.encode(text) for text in questions for name in self.store]


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """The tiny model of a name, and its store, with raw and all of ``COMPRESSED``."""

    @cache
    def make(name: str) -> Case:
        folder = tmp_path_factory.mktemp(name)
        directory = save(name, folder / "model")
        model = kvtool.load_model(directory, device="cpu")
        sources = write_documents(folder / "docs")
        store = LocalStore(folder / "store")
        assert not kvtool.prefill([str(path) for path in sources], model=model, store=store).problems
        for recipe in COMPRESSED:
            kvtool.compress(store, recipe=recipe, model=model)
        return Case(directory, model, store)

    return make


@pytest.fixture(scope="session")
def embedded_case(embedded: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The embedded model, with raw, kivi and klt."""
    folder = tmp_path_factory.mktemp("embedded")
    store = LocalStore(folder / "store")
    sources = [str(path) for path in write_documents(folder / "docs", share=3)]
    assert not kvtool.prefill(sources, model=embedded, store=store).problems
    kvtool.compress(store=store, recipe="kivi", bits=4)
    kvtool.compress(store=store, recipe="klt", model=embedded)
    return Case(embedded.directory, embedded, store)


def write_documents(folder: Path, share: int = 1) -> list[Path]:
    folder.mkdir()
    paths = []
    for name, size in SIZES.items():
        path = folder / name
        path.write_text((SAMPLES / name).read_text()[: size * share])
        paths.append(path)
    return paths


def zeroed(case: Case, folder: Path) -> LocalStore:
    """A copy of the store whose documents' keys and values are all zeros, and valid otherwise."""
    store = LocalStore(Path(shutil.copytree(case.store.root, folder)))
    for name in case.store:
        document, original = store[name], store.open(name)
        kv = original.kv()
        for layer in kv.layers:
            layer.keys.zero_()
            layer.values.zero_()
        prefix = store.prefix(name, case.model)
        variant = store.put(raw_content(kv, case.model, prefix, original.meta["source"]))
        with store.writing():
            store.commit(document.with_variant(0, RAW, variant))
    return store
