"""Files made to harm: whole and with right digests, but not what kvtool writes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kvtool import limits
from kvtool.artifact.read import Artifact, header_bytes
from kvtool.artifact.write import compressed_content, digest_tensor, serialize
from kvtool.codecs import KV, Pipeline
from kvtool.codecs.entropy.planes import Planes
from kvtool.codecs.format import container
from kvtool.codecs.recipe_registry import recipe
from kvtool.digest import canonical_json, digest
from kvtool.errors import ArtifactError
from tests.artifact.conftest import KVs, Write, read_all, same

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


def test_negative_sizes_are_refused(make_kv: KVs, write: Write) -> None:
    path = write(make_kv())
    artifact, data = Artifact.open(path), path.read_bytes()
    dtype, shape = artifact.entries["layers.0000.keys"]
    entries = {**artifact.entries, "layers.0000.keys": (dtype, (-shape[0], -shape[1], *shape[2:]))}
    meta = {name: value for name, value in artifact.meta.items() if name != "digest"}
    head = header_bytes(entries, {**meta, "digest": digest(header_bytes(entries, meta))})
    path.write_bytes(head + data[-sum(map(container.nbytes, artifact.entries.values())) :])
    with pytest.raises(ArtifactError, match=r"tensor 'layers.0000.keys' has shape \(-2, -5, 4\)"):
        Artifact.open(path)


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


def test_a_field_that_is_not_known_is_passed_over(make_kv: KVs, write: Write) -> None:
    kv = make_kv()
    path = forge(write(kv), lambda meta: meta.update(written_by="a later kvtool"))
    assert same(read_all(path), kv)


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
