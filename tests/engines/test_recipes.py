"""Every recipe on real caches: what a document of the embedded model becomes, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import kvtool
from kvtool.artifact.measure import measure_artifact
from kvtool.cli import app
from kvtool.codecs import recipes
from kvtool.store.local import LocalStore

pytestmark = pytest.mark.slow

# Norm of the error over that of the cache, for keys and for values. Others stay below 0.5.
EXACT = {"lossless": (0.0, 0.0), "int8-blockwise": (0.02, 0.02)}
# Neighbouring layers of this model are nearly orthogonal, so that merging them loses most of both. And klt spends nothing on
# what the model's loss does not depend on.
ROUGH = {"minicache": (0.7, 0.8), "klt": (0.5, 0.8)}

# Those that leave out tokens have tests of their own (tests/codecs/prune, tests/artifact/test_pruned_memory.py).
RECIPES = sorted(name for name, recipe in recipes().items() if not recipe.prunes)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, embedded: kvtool.Model) -> LocalStore:
    folder = tmp_path_factory.mktemp("real")
    text = (Path(__file__).parents[2] / "samples" / "harbour.md").read_text()
    (folder / "harbour.md").write_text(text)
    made = LocalStore(folder / "store")
    kvtool.prefill([folder / "harbour.md"], model=embedded, store=made)
    for name in RECIPES:
        # Those that are calibrated are so first.
        kvtool.compress(made, recipe=name, model=embedded)
    return made


@pytest.mark.parametrize("variant", RECIPES)
def test_a_real_cache_comes_back(store: LocalStore, embedded: kvtool.Model, variant: str) -> None:
    (name,) = store
    raw, back = store.read(name), store.read(name, variant=variant)
    assert torch.equal(raw.token_ids, back.token_ids)
    contents = store.open(name, variant).contents
    pipeline = contents.pipeline
    inputs = measure_artifact(embedded, store.parts(name), pipeline.needs)
    for group in contents.groups[:: max(1, len(contents.groups) // 4)]:
        own = {need: [tensors[index] for index in group] for need, tensors in inputs.items()}
        own["token_ids"] = [raw.token_ids] * len(group)
        bounds = pipeline.error([raw.layers[index] for index in group], contents.place(group), own)
        for index in group:
            for side, bound in zip(("keys", "values"), bounds, strict=True):
                one, other = (getattr(kv.layers[index], side) for kv in (raw, back))
                assert (one - other).abs().max() <= bound
    for side, most in zip(("keys", "values"), (EXACT | ROUGH).get(variant, (0.5, 0.5)), strict=True):
        one, other = (
            torch.cat([getattr(layer, side).flatten() for layer in kv.layers]) for kv in (raw, back)
        )
        assert (one - other).norm() / one.norm() <= most
    cache = store.load(name, embedded, variant=variant)
    assert cache.get_seq_length() == len(cache.token_ids)


@pytest.mark.parametrize("variant", RECIPES)
def test_the_size_is_what_show_says_to_the_byte(store: LocalStore, variant: str) -> None:
    (name,) = store
    shown = CliRunner().invoke(app, ["show", name, "--store", str(store.root), "--json"])
    (segment,) = json.loads(shown.stdout)["segments"]
    entry = segment["variants"][variant]
    size = Path(entry["file"]).stat().st_size
    assert entry["bytes"] == size == store.size(name, variant)
    assert entry["bits_per_value"] == round(8 * size / store.read(name).n_elements, 4)
    store.open(name, variant).verify()
