"""Files of format 1, kept forever: they open, and what they were written from still gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvtool.artifact.identity import RAW, segment_identity
from kvtool.artifact.read import Artifact
from kvtool.artifact.write import Content, serialize
from kvtool.codecs import KV, Contents, LayerKV, Pipeline
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.quantize.group_v1 import GroupV1
from kvtool.digest import digest_token_ids

GOLDEN = Path(__file__).parents[1] / "golden" / "artifacts"
TOKENS = list(range(100, 107))
PIPELINES = {
    "raw": RAW,
    "kivi": Pipeline((GroupV1(recent=3), Pack()), (GroupV1(recent=3, axis="channel"), Pack())),
}


def kv() -> KV:
    def filled(layer: int, size: int) -> torch.Tensor:
        return (torch.arange(2 * 7 * size, dtype=torch.float32) + layer).reshape(2, 7, size) / 64

    positions = torch.arange(5, 12)
    layers = tuple(LayerKV(filled(n, 4), filled(n, 6), positions) for n in range(2))
    return KV(layers, torch.tensor(TOKENS), {"rope_type": "default", "rope_theta": 10000.0})


def content(name: str) -> Content:
    segment, pipeline = kv(), PIPELINES[name]
    contents = Contents.of(segment, pipeline)
    tensors = {"token_ids": segment.token_ids.to(torch.int32)}
    for group in contents.groups:
        tensors |= contents.encode(group, [segment.layers[index] for index in group])
    model, prefix = "0" * 64, digest_token_ids(range(5))
    meta = {
        **contents.to_metadata(),
        "identity": segment_identity(model, prefix, TOKENS, pipeline),
        "model": {"fingerprint": model},
        "prefix": {"digest": prefix, "tokens": 5},
        "token_digest": digest_token_ids(TOKENS),
        "calibrations": [],
        "source": {"document": "docs/guide.md"},
    }
    return Content(tensors, meta)


@pytest.mark.parametrize("name", PIPELINES)
def test_an_artifact_of_format_1(name: str) -> None:
    path = GOLDEN / f"artifact-v1-{name}.safetensors"
    _, chunks = serialize(content(name))
    if not path.exists():  # a golden file is made once and never again
        path.write_bytes(b"".join(chunks))
        pytest.fail(f"{path.name} was missing and has been made; commit it")
    assert path.read_bytes() == b"".join(chunks)
    opened = Artifact.open(path)
    opened.verify()
    found, expected = opened.kv(), kv()
    assert torch.equal(found.token_ids, expected.token_ids)
    step = 2 * 6 * 7 / 64 / 3 if name == "kivi" else 0
    for here, there in zip(found.layers, expected.layers, strict=True):
        assert (here.keys - there.keys).abs().max() <= step
        assert (here.values - there.values).abs().max() <= step
