"""A random model whose answers depend on all it reads, a store of three documents, and caches broken on purpose."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from kvtool.codecs.rope import ropes
from kvtool.engines.capabilities import rope_description
from kvtool.evaluation.candidates import Restored
from kvtool.kernels import dispatch
from kvtool.measurement.bench import Bench
from kvtool.measurement.scope import Scope
from kvtool.store.local import LocalStore

WORDS = "ship left harbour at dawn with seven sailors cargo apples bread rope"


@pytest.fixture(scope="session")
def lively(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """Weights so large that attention looks somewhere in particular."""
    directory = tmp_path_factory.mktemp("lively")
    make_model(directory, initializer_range=0.3, max_position_embeddings=4096, num_hidden_layers=3)
    return kvtool.load_model(directory, device="cpu")


def prose(words: int, seed: int) -> str:
    drawn = random.Random(seed)
    sentences = [" ".join(drawn.choices(WORDS.split(), k=9)).capitalize() + "." for _ in range(words // 9)]
    return " ".join(sentences) + "\n"


@pytest.fixture(scope="session")
def documents(lively: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """a.txt, b.txt and c.txt, of some 900 tokens each; not to be written to."""
    folder = tmp_path_factory.mktemp("documents")
    for seed, name in enumerate("abc"):
        (folder / f"{name}.txt").write_text(prose(170, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report = kvtool.prefill(".", model=lively, store=LocalStore(folder / "kv-store"))
    assert not report.problems
    return LocalStore(folder / "kv-store")


@dataclass(frozen=True)
class Broken:
    """The raw cache, and something done to it."""

    name: str
    spoil: Callable[[kvtool.DocumentCache, Bench], None]
    kind: Any = "recipe"
    family: str = "broken"
    summary: str = ""
    paper: str = ""
    variant: None = None

    @property
    def identity(self) -> Any:
        return ["broken", self.name]

    def restore(self, bench: Bench) -> Restored:
        cache = bench.load()
        self.spoil(cache, bench)
        return Restored(cache, bench.raw_nbytes // 2, 0.0, 0.0)


def zero_layer(cache: kvtool.DocumentCache, bench: Bench) -> None:
    layer = cache.layers[len(cache.layers) // 2]
    layer.keys.zero_()
    layer.values.zero_()


def swap_heads(cache: kvtool.DocumentCache, bench: Bench) -> None:
    for layer in cache.layers:
        layer.keys.copy_(layer.keys.flip(1))
        layer.values.copy_(layer.values.flip(1))


def turn_by_one(cache: kvtool.DocumentCache, bench: Bench) -> None:
    """Every second layer's keys stand one position too far, as where RoPE is applied to wrong positions."""
    rotations = ropes(rope_description(bench.model), len(cache.layers))
    for rope, layer in zip(rotations, cache.layers, strict=True):
        positions = torch.ones(layer.keys.shape[2], dtype=torch.int64)
        cos, sin = dispatch.angles(positions, torch.tensor(rope.inv_freq))
        keys = layer.keys[0].clone()
        dispatch.rotate(keys, cos, sin, rope.layout, keys)
        layer.keys[0].copy_(keys)


def add_noise(cache: kvtool.DocumentCache, bench: Bench) -> None:
    generator = torch.Generator().manual_seed(7)
    for layer in cache.layers:
        for part in (layer.keys, layer.values):
            part.add_(0.05 * part.std() * torch.randn(part.shape, generator=generator))


ZEROED, SWAPPED = Broken("zeroed layer", zero_layer), Broken("swapped heads", swap_heads)
TURNED = Broken("RoPE off by one", turn_by_one)
BROKEN = [ZEROED, SWAPPED, TURNED]
NOISY = Broken("noisy", add_noise)

SMALL = Scope(context=500, tokens=64, lengths=(2400,), haystacks=1, answer_tokens=8, repeats=1)
KL = Scope(metrics=("kl",), context=500, tokens=64)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    lines = [
        {"document": "a.txt", "question": "What did the ship carry?"},
        {"document": "b.txt", "turns": ["Who left?", "When?", "With what?"]},
        {"document": "a.txt", "question": "How many sailors?"},
    ]
    return write_questions(tmp_path, lines)


def write_questions(folder: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def of(evaluation: Any, name: str) -> Any:
    """The candidate of that name."""
    (candidate,) = (c for c in evaluation["candidates"] if c["name"] == name)
    return candidate
