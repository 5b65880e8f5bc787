"""A lively model, and a store whose documents are averaged over neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kvtool
from kvtool.model.chat_template import SEPARATOR, document_tokens
from kvtool.store.local import LocalStore
from tests.caches import full_prefill

THREE = ["c.txt", "docs/a.md", "docs/b.md"]
QUESTION = "How many ships left?"


@pytest.fixture(scope="module")
def lively(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """Weights so large that the tokens before a token matter to it."""
    directory = make_model(tmp_path_factory.mktemp("lively"), num_hidden_layers=3, initializer_range=0.3)
    return kvtool.load_model(directory, device="cpu")


@pytest.fixture
def made(lively: kvtool.Model, corpus: Path) -> LocalStore:
    """The corpus, averaged over two neighbours."""
    store = LocalStore(corpus / "made")
    report = kvtool.prefill(["docs", "c.txt"], model=lively, store=store, neighbours=2)
    assert sorted(report.averaged) == THREE
    assert report.without_neighbours == []
    return store


def files(store: LocalStore) -> dict[str, bytes]:
    """All of the store, but for its notes of who has used what."""
    files = {p.relative_to(store.root): p for p in store.root.rglob("*.*") if p.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.parts[0] != "uses"}


def touched(store: LocalStore) -> dict[Path, int]:
    """When each file and folder was last written to, also by files that were removed again."""
    paths = [path for name in ("artifacts", "manifests") for path in (store.root / name).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in paths}


def turned_back(x: Tensor, by: int, theta: float = 10_000.0) -> Tensor:
    """[H, T, D] as if ``by`` positions further ahead, channels i and i + D/2 being one complex number."""
    half = x.shape[-1] // 2
    pairs = torch.complex(*x.double().split(half, -1))
    angles = -by * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], -1)


def after(
    model: kvtool.Model, store: LocalStore, name: str, other: str, tokens: int = 200
) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values of ``name`` after prefix, ``other`` and a gap, by transformers alone, moved back."""
    prefix, own = (part.token_ids.tolist() for part in store.parts(name))
    before = [*store.open(other).token_ids.tolist()[:tokens], *document_tokens(model, SEPARATOR)]
    cache = full_prefill(model, [*prefix, *before, *own])
    n = len(prefix) + len(before)
    return [
        (turned_back(layer.keys[0, :, n:], len(before)), layer.values[0, :, n:].double())
        for layer in cache.layers
    ]
