"""Chunks by kvtool's recipes: round trips, sizes, what is refused, and chunks of known tokens."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtool.codecs import CodecError, Pipeline, Rope, encode, recipe
from kvtool.codecs.entropy.planes import Planes
from kvtool.codecs.klt.calibrate import example
from kvtool.codecs.transform.unrope import Unrope
from kvtool.connectors.lmcache.chunk import ChunkKey, unpack
from kvtool.connectors.lmcache.coder import PAGE, Coder
from kvtool.connectors.lmcache.layout import ChunkTokens, fill, to_kv

KEY = ChunkKey(b"\x01" * 32, "org/model")
ERRORS = {"kivi": 0.35, "cachegen": 0.35, "lossless": 0.0}
"""The largest error of each recipe for normally distributed numbers, those of LMCache's tests, at 4 bits and level 2."""
PARAMETERS: dict[str, dict[str, Any]] = {"kivi": {"bits": 4, "recent": 0}}


def pipeline(name: str) -> Pipeline:
    return recipe(name).build(**PARAMETERS.get(name, {}))


def decoded(coder: Coder, data: bytes, like: Tensor, key: ChunkKey = KEY) -> Tensor:
    out = torch.full_like(like, 7)
    coder.decode_into(data, out, key)
    return out


@given(
    st.sampled_from(sorted(ERRORS)),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from(["two planes", "fused", "latents"]),
    st.integers(0, 1 << 31),
)
def test_every_shape_and_dtype_comes_back_within_the_recipes_error(
    name: str, dtype: torch.dtype, layers: int, tokens: int, heads: int, channels: int, planes: str, seed: int
) -> None:
    width = heads * channels * (2 if planes == "fused" else 1)
    shape = ([2] if planes == "two planes" else []) + [layers, tokens, width]
    chunk = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    coder = Coder(pipeline(name), heads=heads, fused=planes == "fused")
    data = coder.encode(chunk, KEY)
    assert len(data) <= coder.capacity(chunk.shape, dtype)
    error = (decoded(coder, data, chunk).float() - chunk.float()).abs().max().item()
    assert error <= ERRORS[name] * max(1.0, chunk.float().abs().max().item() / 3)


def test_heads_are_those_of_lmcaches_layout() -> None:
    chunk = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    kv = to_kv(chunk, 2, None)
    # Channel 4 of token 1 is channel 1 of head 1.
    assert kv.layers[2].keys[1, 1, 1] == chunk[0, 2, 1, 4]
    assert kv.layers[2].values[0, 3, 2] == chunk[1, 2, 3, 2]
    back = torch.zeros_like(chunk)
    fill(back, kv)
    assert torch.equal(back, chunk)


def test_fused_heads_have_their_key_before_their_value() -> None:
    chunk = torch.arange(3 * 4 * 12, dtype=torch.float32).reshape(3, 4, 12)
    kv = to_kv(chunk, 2, None, fused=True)
    # Head 1 has channels 6 to 8 for its key, 9 to 11 for its value.
    assert torch.equal(kv.layers[2].keys[1, 3], chunk[2, 3, 6:9])
    assert torch.equal(kv.layers[0].values[1, 1], chunk[0, 1, 9:12])
    back = torch.zeros_like(chunk)
    fill(back, kv)
    assert torch.equal(back, chunk)


def test_chunks_of_kivi_are_of_one_size() -> None:
    coder = Coder(pipeline("kivi"))
    zeros, numbers = torch.zeros(2, 2, 16, 8), torch.randn(2, 2, 16, 8)
    sizes = {len(coder.encode(chunk, KEY)) for chunk in (zeros, numbers)}
    assert sizes == {coder.capacity(zeros.shape, zeros.dtype)}
    assert sizes.pop() % PAGE == 0


def test_with_room_every_chunk_takes_it_or_is_refused() -> None:
    chunk = torch.randn(2, 4, 64, 64)
    roomy, narrow = Coder(pipeline("cachegen"), room=0.5), Coder(pipeline("lossless"), room=0.05)
    data = roomy.encode(chunk, KEY)
    assert len(data) == roomy.capacity(chunk.shape, chunk.dtype)
    assert 0.5 * chunk.nbytes <= len(data) <= 0.5 * chunk.nbytes + 3 * PAGE
    assert (decoded(roomy, data, chunk) - chunk).abs().max() < 0.35
    with pytest.raises(CodecError, match="has room for"):
        narrow.encode(chunk, KEY)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_stored(broken: float) -> None:
    chunk = torch.randn(2, 2, 16, 8)
    chunk[0, 1, 3, 2] = broken
    with pytest.raises(CodecError, match=r"layer 1: keys: (nan|inf) at token 3"):
        Coder(pipeline("kivi")).encode(chunk, KEY)


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(2, 2, 16, 8, dtype=torch.bfloat16),
        torch.zeros(2, 2, 8, 16),
        torch.zeros(2, 1, 32, 8),
        torch.zeros(4, 16, 8),
        torch.zeros(2, 2, 17, 8),
    ],
)
def test_another_shape_or_dtype_gets_nothing(other: Tensor) -> None:
    coder = Coder(pipeline("kivi"))
    data = coder.encode(torch.randn(2, 2, 16, 8), KEY)
    with pytest.raises(CodecError, match="expected"):
        coder.decode_into(data, other, KEY)
    assert not other.any()


def test_a_pipeline_that_lmcache_has_no_input_for_is_refused() -> None:
    with pytest.raises(CodecError, match="attention"):
        Coder(recipe("klt").build(example(), power=0.4), pipeline("lossless"))
    with pytest.raises(CodecError, match="fewer tokens"):
        Coder(recipe("streaming-llm").build())
    with pytest.raises(CodecError, match="expected another one for chunks without them"):
        Coder(recipe("klt").build(example(), power=0.0))


TURNED = Pipeline(keys=(Unrope(), Planes()), values=(Planes(),))
"""Turns keys back, for which it must know their positions."""

ROPE = {
    "rotations": [Rope((1.0, 0.1)).to_json()],
    "rotation_of_layer": [0, 0],
}


def test_known_tokens_reach_the_codec_and_others_are_coded_otherwise() -> None:
    chunk = torch.randn(2, 2, 16, 8)
    tokens = ChunkTokens(torch.arange(100, 116), 48, ROPE)
    coder = Coder(TURNED, pipeline("lossless"), heads=2, find={KEY: tokens}.get)
    unknown = ChunkKey(b"\x02" * 32, KEY.model_name)
    known, other = coder.encode(chunk, KEY), coder.encode(chunk, unknown)
    about = unpack(known, KEY)[1]
    assert about["positions"] == {"start": 48}
    assert about["tokens_known"] is True
    assert unpack(other, unknown)[1]["tokens_known"] is False
    # A server without the store decodes both: the chunk says of which tokens it is.
    elsewhere = Coder(pipeline("kivi"))
    assert (decoded(elsewhere, known, chunk) - chunk).abs().max() < 1e-5
    assert torch.equal(decoded(elsewhere, other, chunk, unknown), chunk)


def test_what_the_codec_cannot_take_is_coded_otherwise_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    three_layers = torch.randn(2, 3, 16, 8)
    tokens = ChunkTokens(torch.arange(16), 0, ROPE)
    coder = Coder(TURNED, pipeline("lossless"), heads=2, find={KEY: tokens}.get)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            data = coder.encode(three_layers, KEY)
    assert torch.equal(decoded(coder, data, three_layers), three_layers)
    assert [record.message for record in caplog.records] == [
        "chunks of org/model are coded as unknown ones: rope: rotation_of_layer is [0, 0], expected one index for each layer"
    ]


def test_chunks_are_coded_as_kvtool_codes_a_segment() -> None:
    chunk = torch.randn(2, 2, 16, 8)
    data = Coder(pipeline("kivi"), heads=2).encode(chunk, KEY)
    blob = encode(to_kv(chunk, 2, None), pipeline("kivi"))
    assert unpack(data, KEY)[1]["pipeline"] == blob.metadata["pipeline"]
