"""Pruning frees memory: what a process holds for a loaded cache, and the file, fall with the share of tokens that is kept."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kvtool
from kvtool.store.local import LocalStore

RECIPES = {
    "uniform": ("keydiff", {"heads": "uniform"}),
    "tokens": ("keydiff", {"heads": "tokens"}),
    "across": ("keydiff", {"heads": "across"}),
    "ada-kv": ("ada-kv", {}),
    "pyramidkv": ("pyramidkv", {}),
    "kvzip": ("kvzip", {}),
    "matching": ("attention-matching", {}),
}
"""Heads and layers that share out what stays in all ways, also by several layers' scores, and one recipe that makes biases."""


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """Heads of 32 channels: a token's place takes 4 bytes beside 256."""
    directory = tmp_path_factory.mktemp("models") / "wide"
    make_model(directory, hidden_size=128, max_position_embeddings=2048, initializer_range=0.1)
    return kvtool.load_model(directory, device="cpu")


@pytest.fixture(scope="module")
def store(model: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    folder, numbers = tmp_path_factory.mktemp("documents"), random.Random(2)
    text = " ".join(f"House {numbers.randrange(900)} has {numbers.randrange(90)} doors." for _ in range(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("a.txt").write_text(text)
        kvtool.prefill("a.txt", model=model, store=LocalStore("kv-store"))
    return LocalStore(folder / "kv-store")


def loaded_bytes(store: LocalStore, model: kvtool.Model, variant: str) -> int:
    """The memory of all tensors that this process has for a loaded cache, without room for more tokens."""
    # What there was before is not looked at again.
    gc.freeze()
    try:
        cache = store.load("a.txt", model, variant=variant)
        cache.fit(0)
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        storages = [tensor.untyped_storage() for tensor in tensors]
        taken = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    finally:
        gc.unfreeze()
    assert taken == cache.nbytes + cache.token_ids.nbytes
    return taken


@pytest.mark.parametrize("name", RECIPES)
def test_memory_and_file_fall_with_the_kept_share(store: LocalStore, model: kvtool.Model, name: str) -> None:
    recipe, parameters = RECIPES[name]
    n_prefix, n_tokens = (len(part.token_ids) for part in store.parts("a.txt"))
    whole, whole_file = loaded_bytes(store, model, "raw"), store.size("a.txt")
    for keep in (0.5, 0.2):
        variant = f"{name}-{keep}"
        kvtool.compress(store, recipe=recipe, name=variant, model=model, keep=keep, **parameters)
        # The prefix is whole.
        share = (n_prefix + keep * n_tokens) / (n_prefix + n_tokens)
        assert loaded_bytes(store, model, variant) / whole == pytest.approx(share, rel=0.1)
        assert store.size("a.txt", variant) / whole_file == pytest.approx(keep, rel=0.1)
