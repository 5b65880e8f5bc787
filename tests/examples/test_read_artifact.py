"""A reader that knows the specification alone gets the same tensors as kvtool, and refuses what kvtool refuses."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import kvtool
from kvtool.store.local import LocalStore

EXAMPLE = Path(__file__).parents[2] / "examples/read_artifact.py"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_artifact", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_imports_nothing_of_kvtool() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 150
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
        )
    }
    assert imported == {"__future__", "json", "sys", "collections", "pathlib", "typing", "numpy", "blake3"}


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def stored(request: pytest.FixtureRequest, tiny_dir: Path, corpus: Path) -> LocalStore:
    """A document, prefilled in each dtype."""
    model = kvtool.load_model(tiny_dir, device="cpu", dtype=request.param)
    Path("long.md").write_text("Caches are computed once. " * 9)
    store = LocalStore(corpus / request.param)
    assert not kvtool.prefill(["long.md"], model=model, store=store).problems
    return store


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"bits": 4, "recent": 0},
        {"bits": 3, "group": 5, "recent": 7, "sinks": 4},
        {"bits": 8, "recent": 1000},
    ],
    ids=str,
)
def test_it_reads_the_same_tensors(
    reader: ModuleType, stored: LocalStore, options: dict[str, int] | None
) -> None:
    if options is not None:
        kvtool.compress(stored, recipe="kivi", **options)
    artifact = stored.open("long.md", "raw" if options is None else "kivi")
    metadata, token_ids, layers = reader.read(artifact.path)
    kv = artifact.kv()
    assert metadata["digest"] == artifact.path.stem
    assert token_ids.tolist() == kv.token_ids.tolist()
    for (keys, values), layer in zip(layers, kv.layers, strict=True):
        assert torch.equal(torch.tensor(keys), layer.keys.float())
        assert torch.equal(torch.tensor(values), layer.values.float())


def test_it_refuses_every_flipped_byte(reader: ModuleType, store: LocalStore, tmp_path: Path) -> None:
    kvtool.compress(store, "docs/a.md", recipe="kivi")
    data = store.open("docs/a.md", "kivi").path.read_bytes()
    for at in range(0, len(data), max(len(data) // 97, 1)):
        broken = bytearray(data)
        broken[at] ^= 1
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises((ValueError, KeyError, UnicodeDecodeError)):
            reader.read(tmp_path / "broken")


def test_it_refuses_other_recipes(reader: ModuleType, store: LocalStore) -> None:
    kvtool.compress(store, "docs/a.md", recipe="lossless")
    with pytest.raises(ValueError, match="are not those of kivi"):
        reader.read(store.open("docs/a.md", "lossless").path)
