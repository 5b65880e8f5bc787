"""Parts of an artifact: what a question needs is read, checked and counted, and the rest is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.artifact.paged_cache import PagedCache, paged_cache
from kvtool.artifact.pages import PageReader, joined
from kvtool.artifact.read import Artifact
from kvtool.engines.generate import generate
from kvtool.errors import ArtifactError, MismatchError, ModelError
from kvtool.store.local import LocalStore
from tests.families import FAMILIES, SIZES, model_of, save

__all__ = ["model_of"]

TEXT = " ".join(f"House {n * 7919 % 900} has {n * 31 % 90} doors." for n in range(16))
QUESTION = [int(byte) for byte in b"How many doors has house 19?"]

Make = Callable[..., tuple[kvtool.Model, LocalStore]]


@pytest.fixture(scope="module")
def make(model_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A model of a family, and a store with the document a.txt in the variant quest."""
    made: dict[str, tuple[kvtool.Model, LocalStore]] = {}

    def make(family: str = "deep") -> tuple[kvtool.Model, LocalStore]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            if family == "deep":
                config = FAMILIES["llama"][0](**SIZES | {"num_hidden_layers": 6})
                model = kvtool.load_model(save(folder / "model", config), device="cpu")
            else:
                model = model_of(family)
            (folder / "a.txt").write_text(TEXT)
            store = LocalStore(folder / "store")
            kvtool.prefill([folder / "a.txt"], model=model, store=store)
            kvtool.compress(store, recipe="quest", name="quest")
            made[family] = model, store
        return made[family]

    return make


def answer(model: kvtool.Model, cache: Any) -> list[int]:
    return generate(model, [*cache.token_ids.tolist(), *QUESTION], cache, max_tokens=8)


def read(model: kvtool.Model, store: LocalStore, share: float) -> tuple[list[int], PagedCache]:
    cache = paged_cache(store.parts(*store, "quest"), model, share)
    return answer(model, cache), cache


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt-neox", "deep"])
def test_all_pages_give_the_same_answer(make: Make, family: str) -> None:
    model, store = make(family)
    expected = answer(model, store.load(*store, model, "quest"))
    assert expected == answer(model, store.load(*store, model))
    tokens, cache = read(model, store, 1.0)
    assert tokens == expected
    assert not any(layer.holds_all for layer in cache.layers[2:])


def test_no_more_is_read_than_a_share_and_what_tells_which(make: Make) -> None:
    model, store = make()
    artifact = store.open(*store, "quest")
    assert artifact.paged is not None
    for share in (0.1, 0.25, 0.5):
        _, cache = read(model, store, share)
        held = [len(layer.indices) for layer in cache.layers[2:]]  # type: ignore[attr-defined]
        prefix = cache.readers[0].artifact
        most = -(-artifact.paged.n_pages * share // 1) * 16 + len(prefix.token_ids)
        assert max(held) <= most
        names = [
            name for name in artifact.entries if name.startswith(("digests", "layers.0000", "layers.0001"))
        ]
        names += [name for name in artifact.entries if name.endswith((".low", ".high"))]
        beside = sum(_nbytes(artifact, name) for name in {"token_ids", *names}) + min(
            artifact.offsets.values()
        )
        rows = sum(_nbytes(artifact, name) for layer in range(2, 6) for name in artifact.paged.arrays(layer))
        limit = beside + prefix.nbytes + rows * most / artifact.paged.n_tokens
        assert cache.read_nbytes <= limit < cache.stored_nbytes
        assert cache.stored_nbytes == artifact.nbytes + prefix.nbytes


def _nbytes(artifact: Artifact, name: str) -> int:
    dtype, shape = artifact.entries[name]
    n = dtype.itemsize
    for size in shape:
        n *= size
    return n


def test_neighbouring_ranges_are_one() -> None:
    assert list(joined([range(8, 9), range(0, 4), range(4, 6), range(3, 3)])) == [range(6), range(8, 9)]


@pytest.mark.parametrize(
    "where", ["layers.0003.values", "layers.0003.keys.low", "digests.0003", "layers.0001.keys"]
)
def test_a_flipped_byte_is_noticed_where_it_is_read(make: Make, tmp_path: Path, where: str) -> None:
    model, store = make()
    *prefix, artifact = store.parts(*store, "quest")
    data = bytearray(artifact.path.read_bytes())
    data[artifact.offsets[where] + 40] ^= 1
    path = tmp_path / artifact.path.name
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="has changed since it was written"):
        answer(model, paged_cache([*prefix, Artifact.open(path)], model, 1.0))


def test_pages_that_changed_places_are_noticed(make: Make, tmp_path: Path) -> None:
    _, store = make()
    artifact = store.open(*store, "quest")
    data, start, size = (
        bytearray(artifact.path.read_bytes()),
        artifact.offsets["layers.0003.keys"],
        16 * 2 * 8 * 4,
    )
    first, second = data[start : start + size], data[start + size : start + 2 * size]
    data[start : start + 2 * size] = second + first
    path = tmp_path / artifact.path.name
    path.write_bytes(data)
    reader = PageReader(Artifact.open(path), range(2, 6))
    with pytest.raises(ArtifactError, match="page 0 of layer 3 has changed"):
        reader.pages(3, [0, 2])
    assert reader.pages(3, [2]).keys.shape[1] == 16


def test_an_artifact_without_bounds_is_refused(make: Make) -> None:
    model, store = make()
    with pytest.raises(MismatchError, match=r"no bounds of its pages.*kvtool compress a.txt --recipe quest"):
        paged_cache(store.parts(*store), model, 0.5)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("mistral", "see the last 16 tokens alone"),
        ("gemma3", "see the last"),
        ("deepseek-v3", "makes the keys"),
    ],
)
def test_models_whose_attention_bounds_say_nothing_of_are_refused(
    make: Make, family: str, message: str
) -> None:
    model, store = make(family)
    with pytest.raises(ModelError, match=message):
        paged_cache(store.parts(*store, "quest"), model, 0.5)
