"""An artifact gives back the very bits it was written from, or says why not."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file

import kvtool
from kvtool import limits
from kvtool.artifact.identity import segment_identity
from kvtool.artifact.read import Artifact
from kvtool.artifact.write import compressed_content, raw_content, serialize
from kvtool.codecs import KV, LayerKV, Pipeline
from kvtool.codecs.entropy.planes import Planes
from kvtool.codecs.format import container
from kvtool.codecs.registry import recipe
from kvtool.digest import canonical_json, digest, digest_tensor
from kvtool.errors import ArtifactError
from kvtool.model.chat_template import Prefix

UNDER = Prefix((258, 7, 7), "\n", {"kind": "none"})
KVs = Callable[..., KV]
Write = Callable[[KV], Path]


@pytest.fixture
def write(tiny: kvtool.Model, tmp_path: Path) -> Write:
    def write(kv: KV) -> Path:
        whole, chunks = serialize(raw_content(kv, tiny, UNDER, {"document": "x.md"}))
        path = tmp_path / f"{whole}.safetensors"
        path.write_bytes(b"".join(chunks))
        return path

    return write


def read_all(path: Path, expected: str | None = None) -> KV:
    opened = Artifact.open(path, expected=expected)
    opened.verify()
    return opened.kv()


def same(a: KV, b: KV) -> bool:
    pairs = [(a.token_ids, b.token_ids)]
    for x, y in zip(a.layers, b.layers, strict=True):
        pairs += [(x.keys, y.keys), (x.values, y.values), (x.positions, y.positions)]
    return all(
        x.dtype == y.dtype and x.shape == y.shape and digest_tensor(x) == digest_tensor(y) for x, y in pairs
    )


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


# Made to harm: whole and with right digests, but not what kvtool writes


Change = Callable[[dict[str, Any]], object]


def forge(path: Path, change: Change, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """``path`` again with changed metadata and digests that fit; ``tensors`` replaces all tensors."""
    meta = json.loads(canonical_json(Artifact.open(path).meta))
    del meta["digest"]
    tensors = load_file(path) if tensors is None else tensors
    tensors = dict(sorted(tensors.items(), key=lambda x: x[0] != "token_ids"))
    placed = container.layout(container.entries({n: t for n, t in tensors.items() if "pad." not in n}))
    meta["tensors"] = {n: digest_tensor(tensors[n]) for n in placed if "pad." not in n}
    change(meta)
    whole = digest(container.header(placed, {"kvtool": canonical_json(meta).decode()}))
    meta = {**meta, "digest": whole}
    payload = [
        bytes(container.raw_bytes(tensors[n])) if n in tensors else bytes(container.nbytes(e))
        for n, e in placed.items()
    ]
    head = container.header(placed, {"kvtool": canonical_json(meta).decode()})
    path.write_bytes(head + b"".join(payload))
    return path


def geometry(**fields: object) -> Change:
    return lambda meta: meta["geometry"]["layers"][0].update(fields)


HOSTILE: dict[str, Change] = {
    "heads": geometry(keys=[1 << 30, 4]),
    "channels": geometry(values=[2, 1 << 31 - 1]),
    "negative": geometry(keys=[-2, -4]),
    "layers": geometry(count=99_999),
    "fewer layers": geometry(count=1),
    "no layers": lambda meta: meta["geometry"].update(layers=[]),
    "tokens": lambda meta: (meta["geometry"].update(n_tokens=1 << 30), geometry(tokens=1 << 30)(meta)),
    "fewer tokens": lambda meta: (meta["geometry"].update(n_tokens=4), geometry(tokens=4)(meta)),
    "dtype": lambda meta: meta["geometry"].update(dtype="bfloat16"),
    "unknown dtype": lambda meta: meta["geometry"].update(dtype="complex64"),
    "no geometry": lambda meta: meta.pop("geometry"),
    "positions": lambda meta: meta["positions"].update(start=1 << 40),
    "no positions": lambda meta: meta.update(positions=None),
    "unknown stage": lambda meta: meta["pipeline"]["keys"].append({"name": "x", "version": 1}),
    "missing stage": lambda meta: meta["pipeline"].update(
        keys=recipe("lossless").build().to_config()["keys"]
    ),
    "stage is a string": lambda meta: meta.update(pipeline="raw"),
    "a tensor without digest": lambda meta: meta["tensors"].pop("layers.0000.keys"),
    "a digest without tensor": lambda meta: meta["tensors"].update(more="0" * 64),
    "no digests": lambda meta: meta.pop("tensors"),
    "digests are a list": lambda meta: meta.update(tensors=[]),
    "other token ids": lambda meta: meta.update(token_digest="0" * 64),
    "no token digest": lambda meta: meta.pop("token_digest"),
    "no model": lambda meta: meta.pop("model"),
    "no prefix": lambda meta: meta.pop("prefix"),
    "format 0": lambda meta: meta.update(format=0),
    "format true": lambda meta: meta.update(format=True),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_is_refused_without_allocation(make_kv: KVs, write: Write, change: Change) -> None:
    path = forge(write(make_kv()), change)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError) as caught:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * limits.MIB
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_forging_nothing_is_no_forgery(make_kv: KVs, write: Write) -> None:
    kv = make_kv()
    assert same(read_all(forge(write(kv), lambda meta: None)), kv)


@pytest.mark.parametrize("ids", [[0, 1, -1, 3, 4], [0, 1, 2, 3], [[0, 1, 2, 3, 4]]], ids=str)
def test_hostile_token_ids_are_refused(make_kv: KVs, write: Write, ids: list[Any]) -> None:
    path = write(make_kv())
    with pytest.raises(ArtifactError):
        read_all(
            forge(path, lambda meta: None, load_file(path) | {"token_ids": torch.tensor(ids).to(torch.int32)})
        )


def test_a_tensor_nobody_needs_is_refused(make_kv: KVs, write: Write) -> None:
    path = write(make_kv())
    with pytest.raises(ArtifactError, match="extra"):
        read_all(forge(path, lambda meta: None, load_file(path) | {"extra": torch.ones(3)}))


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def headed(header: bytes, payload: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + payload


def with_meta(meta: str, rest: str = "") -> bytes:
    return headed(f'{{"__metadata__":{{"kvtool":{json.dumps(meta)}}}{rest}}}'.encode())


DEEP = 200_000
BYTES = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": b"\0" * 8,
    "a header of 2**63": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header past the limit": (limits.HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
    "a header past the end": (1 << 20).to_bytes(8, "little") + b"{}",
    "not JSON": headed(b"PK\x03\x04"),
    "not UTF-8": headed(b'{"__metadata__":{"kvtool":"\xff"}}'),
    "a list": headed(b"[]"),
    "deep": headed(b'{"a":' * DEEP),
    "deep list": headed(b"[" * DEEP + b"]" * DEEP),
    "deep metadata": with_meta("[" * DEEP + "]" * DEEP),
    "metadata is a list": with_meta("[]"),
    "a long number": with_meta('{"format":' + "9" * 5000 + "}"),
    "another program's": headed(json.dumps({"x": entry("F32", [1], 0, 4)}).encode(), b"\0" * 4),
    "another program's metadata": headed(b'{"__metadata__":{"format":"pt"}}'),
    "a float format": with_meta('{"format":1.0}'),
    "no number": with_meta('{"format":NaN}'),
    "a surrogate": with_meta('{"format":1,"digest":"\\ud800"}'),
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_other_files_are_refused_without_allocation(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError) as caught:
            Artifact.open(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * limits.MIB
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_sparse_file_as_large_as_its_header_says_allocates_nothing(make_kv: KVs, write: Write) -> None:
    # Size and digests agree, so that only the plan says that this tensor is none of the segment's.
    path = write(make_kv())
    meta = json.loads(canonical_json(Artifact.open(path).meta))
    del meta["digest"]
    entries = dict(Artifact.open(path).entries)
    entries["layers.0001.values"] = (torch.float32, (2, 5, 1 << 33))
    whole = digest(container.header(entries, {"kvtool": canonical_json(meta).decode()}))
    head = container.header(entries, {"kvtool": canonical_json({**meta, "digest": whole}).decode()})
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(map(container.nbytes, entries.values())))
    with pytest.raises(ArtifactError, match=r"layers.0001.values"):
        read_all(path)


@pytest.mark.parametrize("shape", [[-1, -8], [0, 1 << 63], [2.0], ["2"], [True], None], ids=str)
def test_hostile_shapes_are_refused(tmp_path: Path, shape: object) -> None:
    body = {"format": 1, "tensors": {"x": digest(b"")}}
    for _ in range(2):
        header: dict[str, Any] = {"__metadata__": {"kvtool": canonical_json(body).decode()}}
        header["x"] = {"dtype": "U8", "shape": shape, "data_offsets": [0, 8]}
        text = json.dumps(header, separators=(",", ":")).encode()
        data = headed(text + b" " * (-(8 + len(text)) % 64))
        body = {**body, "digest": digest(data)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(data + bytes(8))
    with pytest.raises(ArtifactError):
        read_all(path)


def test_a_key_given_twice_is_refused(make_kv: KVs, write: Write) -> None:
    # Readers differ in which of the two they take.
    path = write(make_kv())
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip()
    name = b'"token_ids":'
    again = text.replace(name, name + b'{"dtype":"I32","shape":[5],"data_offsets":[0,20]},' + name, 1)
    again += b" " * (-(8 + len(again)) % 64)
    path.write_bytes(headed(again, data[8 + length :]))
    with pytest.raises(ArtifactError, match="changed"):
        Artifact.open(path)


@pytest.mark.parametrize("version", [2, 99, 10**30])
def test_a_newer_format_asks_for_an_upgrade(make_kv: KVs, write: Write, version: int) -> None:
    path = forge(write(make_kv()), lambda meta: meta.update(format=version))
    with pytest.raises(ArtifactError, match=rf"format {version}.*upgrade kvtool"):
        Artifact.open(path)


def test_a_newer_stage_asks_for_an_upgrade(make_kv: KVs, write: Write) -> None:
    stages = recipe("lossless").build().to_config()["keys"]
    newer = [{**stages[0], "version": 99}]  # type: ignore[index,dict-item]
    path = forge(write(make_kv()), lambda meta: meta["pipeline"].update(keys=newer))
    with pytest.raises(ArtifactError, match="version 99, newer"):
        read_all(path)


def test_too_many_tensors_are_refused(make_kv: KVs, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(make_kv(layers=3))
    monkeypatch.setattr(limits, "ARTIFACT_TENSORS", 6)
    with pytest.raises(ArtifactError, match="7 tensors, more than 6"):
        Artifact.open(path)


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


@pytest.mark.parametrize("layers", [0, 12])
def test_many_layers_may_lie_in_few_tensors(make_kv: KVs, write: Write, tmp_path: Path, layers: int) -> None:
    original = Artifact.open(write(make_kv(layers=12)))
    content = compressed_content(original, Pipeline((Planes(),), (Planes(),), layers))
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"".join(serialize(content)[1]))
    packed = Artifact.open(path)
    assert [name for name in packed.entries if "pad." not in name] == [
        "token_ids",
        "layers.0000-0011.keys",
        "layers.0000-0011.values",
    ]
    assert same(packed.kv(), original.kv())
    assert same(KV((packed.layer(5),), original.token_ids), KV((original.layer(5),), original.token_ids))
    for count in (11, 13, 99_999):
        with pytest.raises(ArtifactError, match="tensors"):
            read_all(forge(path, geometry(count=count)))
