from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from kvtool.codecs import KV, CodecError, LayerKV, encode
from kvtool.codecs.format import container


def serialize(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    placed = container.layout(container.entries(tensors))
    payload = b"".join(
        bytes(container.raw_bytes(tensors[name])) if name in tensors else bytes(container.nbytes(entry))
        for name, entry in placed.items()
    )
    return container.header(placed, metadata) + payload


def every_dtype() -> dict[str, torch.Tensor]:
    tensors = {
        f"odd.{name}": torch.arange(5).to(torch.float32).to(dtype) for name, dtype in container.DTYPES.items()
    }
    shapes = {"scalar": (), "empty": (0, 3), "cube": (2, 3, 4)}
    return {name: t for pair in zip(tensors, tensors.values(), strict=True) for name, t in [pair]} | {
        name: torch.ones(shape) for name, shape in shapes.items()
    }


def test_safetensors_reads_what_the_header_describes(tmp_path: Path) -> None:
    tensors, path = every_dtype(), tmp_path / "x.safetensors"
    path.write_bytes(serialize(tensors, {"kvtool": '{"é":1}'}))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"kvtool": '{"é":1}'}
        names = [name for name in file.keys() if not name.startswith("pad.")]  # noqa: SIM118
        assert sorted(names) == sorted(tensors)
        for name, tensor in tensors.items():
            got = file.get_tensor(name)
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
            assert bytes(container.raw_bytes(got)) == bytes(container.raw_bytes(tensor))


def test_payload_and_every_tensor_are_aligned() -> None:
    placed = container.layout(container.entries(every_dtype()))
    assert any(name.startswith("pad.") for name in placed)
    head = container.header(placed, {})
    assert len(head) % 64 == 0
    assert len(head) == 8 + int.from_bytes(head[:8], "little")
    described = json.loads(head[8:])
    assert next(iter(described)) == "__metadata__"
    end = 0
    for name, (dtype, _) in placed.items():
        start, stop = described[name]["data_offsets"]
        assert start == end
        assert start % dtype.itemsize == 0
        end = stop


def test_no_padding_where_none_is_needed() -> None:
    entries = container.entries({"a": torch.zeros(2), "b": torch.zeros(3, dtype=torch.uint8)})
    assert container.layout(entries) == entries


def test_names_and_dtypes_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(CodecError, match=r"pad\.0000"):
        container.layout({"pad.0000": (torch.uint8, (1,))})
    with pytest.raises(CodecError, match="complex64"):
        container.header({"a": (torch.complex64, (1,))}, {})


@pytest.mark.parametrize("recipe", ["kivi", "lossless"])
def test_nbytes_is_the_size_of_the_container(recipe: str) -> None:
    layer = LayerKV(torch.randn(1, 141, 5), torch.randn(1, 141, 3), torch.arange(141))
    blob = encode(KV((layer, layer), torch.arange(141), {"type": "default"}), recipe)
    text = json.dumps(blob.metadata, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    data = serialize(dict(blob.tensors), {"kvtool": text})
    assert len(data) == blob.nbytes
    assert set(blob.tensors) <= set(safetensors.torch.load(data))
