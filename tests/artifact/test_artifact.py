"""An artifact gives back the very bits it was written from, or says why not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file

import kvtool
from kvtool.artifact.identity import segment_identity
from kvtool.artifact.read import Artifact
from kvtool.artifact.write import compressed_content, serialize
from kvtool.codecs import KV, LayerKV
from kvtool.codecs.format import container
from kvtool.codecs.recipe_registry import recipe
from kvtool.digest import canonical_json
from kvtool.errors import ArtifactError
from tests.artifact.conftest import UNDER, KVs, Write, read_all, same


def strided(kv: KV) -> KV:
    """The same numbers as slices of longer buffers, and with heads inside: what a cache hands out."""

    def sliced(x: torch.Tensor) -> torch.Tensor:
        buffer = torch.full((x.shape[0], x.shape[1] + 7, x.shape[2]), torch.nan, dtype=x.dtype)
        buffer[:, 3 : 3 + x.shape[1]] = x
        return buffer[:, 3 : 3 + x.shape[1]]

    def heads_inside(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    layers = [LayerKV(sliced(x.keys), heads_inside(x.values), x.positions) for x in kv.layers]
    return replace(kv, layers=tuple(layers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [{}, {"tokens": 1}, {"heads": 1, "size": 7, "value_size": 3}, {"tokens": 0}, {"layers": 1, "start": 0}],
    ids=str,
)
def test_raw_is_exact_canonical_and_open_to_safetensors(
    make_kv: KVs, write: Write, dtype: torch.dtype, shape: dict[str, int]
) -> None:
    kv = make_kv(dtype=dtype, **shape)
    path = write(kv)
    assert same(read_all(path, path.stem), kv)
    assert write(strided(kv)).read_bytes() == path.read_bytes()
    tensors = load_file(path)
    for index, layer in enumerate(kv.layers):
        assert torch.equal(tensors[f"layers.{index:04d}.keys"], layer.keys)
        assert torch.equal(tensors[f"layers.{index:04d}.values"], layer.values)
    assert tensors["token_ids"].tolist() == kv.token_ids.tolist()


def test_special_numbers_keep_their_bits(make_kv: KVs, write: Write) -> None:
    kv = make_kv(layers=1, tokens=2, size=4)
    kv.layers[0].values[0, 0] = torch.tensor([-0.0, 5e-324, 1e-40, 3.4028235e38])
    assert same(read_all(write(kv)), kv)


def test_one_changed_number_is_another_artifact(make_kv: KVs, write: Write) -> None:
    kv = make_kv()
    before = write(kv).stem
    kv.layers[1].values[0, 0, 0] += 1
    assert write(kv).stem != before


def test_tensors_lie_in_the_order_a_loader_needs(make_kv: KVs, write: Write) -> None:
    opened = Artifact.open(write(make_kv(layers=12)))
    names = [name for name in opened.entries if not name.startswith(container.PADDING)]
    assert names == ["token_ids"] + [
        f"layers.{i:04d}.{side}" for i in range(12) for side in ("keys", "values")
    ]
    assert list(opened.offsets.values()) == sorted(opened.offsets.values())


def test_metadata_says_what_it_is(make_kv: KVs, write: Write, tiny: kvtool.Model) -> None:
    path = write(make_kv())
    with safetensors.safe_open(path, "pt") as file:
        text = file.metadata()["kvtool"]
    meta = json.loads(text)
    assert text == canonical_json(meta).decode()
    assert meta["model"]["fingerprint"] == tiny.fingerprint
    assert meta["prefix"] == {"digest": UNDER.digest, "tokens": 3}
    assert meta["digest"] == path.stem
    assert meta["tensors"].keys() == Artifact.open(path).meta["tensors"].keys()


# What is not what was written


def flips(size: int, seed: int = 7) -> Iterator[tuple[int, int]]:
    """Every byte, one bit each."""
    generator = random.Random(seed)
    yield from ((at, 1 << generator.randrange(8)) for at in range(size))


@pytest.mark.parametrize("compress", [None, "lossless"])
def test_a_bit_flipped_anywhere_is_refused(
    make_kv: KVs, write: Write, tmp_path: Path, compress: str | None
) -> None:
    # Three tokens of bfloat16 leave the next layer unaligned, so that there is padding to flip too.
    path = write(make_kv(heads=1, tokens=3, size=3, layers=1 if compress else 2, dtype=torch.bfloat16))
    if compress:
        packed = compressed_content(Artifact.open(path), recipe(compress).build())
        whole, chunks = serialize(packed)
        path = tmp_path / f"{whole}.safetensors"
        path.write_bytes(b"".join(chunks))
    read_all(path, path.stem)
    data = bytearray(path.read_bytes())
    survived = []
    for at, bit in flips(len(data)):
        data[at] ^= bit
        path.write_bytes(data)
        with suppress(ArtifactError):
            Artifact.open(path, expected=path.stem).verify()
            survived.append((at, bit))
        data[at] ^= bit
    assert not survived


def test_a_bit_flipped_in_a_layer_stops_its_reader(make_kv: KVs, write: Write) -> None:
    path = write(make_kv())
    opened = Artifact.open(path)
    data = bytearray(path.read_bytes())
    data[opened.offsets["layers.0001.values"]] ^= 1
    path.write_bytes(data)
    opened = Artifact.open(path, expected=path.stem)
    opened.layer(0)
    with pytest.raises(ArtifactError, match=r"layers.0001.values has changed.*verify --remove"):
        opened.layer(1)


def test_truncation_at_every_length_is_refused(make_kv: KVs, write: Write) -> None:
    path = write(make_kv(layers=1, tokens=2, size=2))
    data = path.read_bytes()
    for length in reversed(range(len(data))):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(ArtifactError) as caught:
            Artifact.open(path)
        assert "\n" not in str(caught.value)


def test_the_file_cut_off_while_it_is_open(make_kv: KVs, write: Write) -> None:
    path = write(make_kv())
    opened = Artifact.open(path)
    with path.open("r+b") as file:
        file.truncate(opened.nbytes - 1)
    with pytest.raises(ArtifactError, match="cut off"):
        opened.kv()


def test_the_file_gone_while_it_is_open(make_kv: KVs, write: Write) -> None:
    path = write(make_kv())
    opened = Artifact.open(path)
    path.unlink()
    with pytest.raises(ArtifactError, match="no such artifact"):
        opened.kv()


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 64, b"more"])
def test_trailing_bytes_are_refused(make_kv: KVs, write: Write, tail: bytes) -> None:
    path = write(make_kv())
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(ArtifactError, match="bytes, its header says"):
        Artifact.open(path)


def test_another_artifact_under_its_name_is_refused(make_kv: KVs, write: Write) -> None:
    one, other = write(make_kv(seed=1)), write(make_kv(seed=2))
    other.replace(one)
    Artifact.open(one).verify()
    with pytest.raises(ArtifactError, match="another artifact"):
        Artifact.open(one, expected=one.stem)


def test_no_file_and_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no such artifact; run the same prefill"):
        Artifact.open(tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Artifact.open(tmp_path)


# Identity


def test_identity_depends_on_everything_that_decides_the_bits() -> None:
    pipelines = [recipe("kivi").build(bits=b) for b in (2, 4)]
    base: dict[str, Any] = {"model": "m", "prefix": "p", "token_ids": [1, 2]}
    variations: list[dict[str, Any]] = [
        {}, {"model": "n"}, {"prefix": "q"}, {"token_ids": [2, 1]}, {"token_ids": [1, 2, 2]},
        {"pipeline": pipelines[0]}, {"pipeline": pipelines[1]},
    ]  # fmt: skip
    made = [segment_identity(**base | change) for change in variations]
    assert len(set(made)) == len(made)
    assert made[0] == segment_identity(**base)


def test_compressed_keeps_where_it_came_from(make_kv: KVs, write: Write, tmp_path: Path) -> None:
    original = Artifact.open(write(make_kv(tokens=40)))
    content = compressed_content(original, recipe("lossless").build())
    whole, chunks = serialize(content)
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"".join(chunks))
    packed = Artifact.open(path, expected=whole)
    packed.verify()
    assert not packed.is_raw
    assert packed.meta["source"]["raw"] == original.digest
    for field in ("model", "prefix", "token_digest", "rope"):
        assert packed.meta[field] == original.meta[field]
    assert packed.meta["identity"] != original.meta["identity"]
    assert same(packed.kv(), original.kv())
