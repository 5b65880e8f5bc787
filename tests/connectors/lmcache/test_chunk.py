"""The bytes of a chunk: what is packed comes back, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtool.codecs import CodecError
from kvtool.connectors.lmcache.chunk import FRAME_BYTES, MAGIC, ChunkKey, pack, unpack

KEY = ChunkKey(b"\x01" * 32, "org/model", 0x01000100, 0, "salt")
TENSORS = {"codes": torch.arange(40, dtype=torch.uint8), "scale": torch.linspace(0, 1, 7)}
PACKED = pack(TENSORS, {"heads": 2}, KEY)


def test_a_chunk_comes_back_with_whatever_stands_after_it() -> None:
    for data in (PACKED, PACKED + bytes(99), memoryview(PACKED + b"other bytes")):
        tensors, metadata = unpack(data, KEY)
        assert metadata == {"heads": 2}
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@given(st.integers(0, len(PACKED) * 8 - 1))
def test_no_bit_may_differ(bit: int) -> None:
    flipped = bytearray(PACKED)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CodecError, match="chunk: "):
        unpack(bytes(flipped), KEY)


@given(st.integers(0, len(PACKED) - 1))
def test_no_byte_may_be_missing(size: int) -> None:
    with pytest.raises(CodecError, match="chunk: "):
        unpack(PACKED[:size], KEY)
    # As an adapter leaves it in a buffer that others have used.
    with pytest.raises(CodecError, match="chunk: "):
        unpack(PACKED[:size] + b"\xff" * len(PACKED), KEY)


@pytest.mark.parametrize(
    "other",
    [
        ChunkKey(b"\x02" * 32, KEY.model_name, KEY.kv_rank, 0, KEY.cache_salt),
        ChunkKey(KEY.chunk_hash, "org/other", KEY.kv_rank, 0, KEY.cache_salt),
        ChunkKey(KEY.chunk_hash, KEY.model_name, 0x02010201, 0, KEY.cache_salt),
        ChunkKey(KEY.chunk_hash, KEY.model_name, KEY.kv_rank, 1, KEY.cache_salt),
        ChunkKey(KEY.chunk_hash, KEY.model_name, KEY.kv_rank, 0, ""),
    ],
)
def test_a_chunk_under_another_key_is_refused(other: ChunkKey) -> None:
    with pytest.raises(CodecError, match="stored under the key"):
        unpack(PACKED, other)


def test_the_frame_is_as_documented() -> None:
    length = int.from_bytes(PACKED[8:16], "little")
    assert (PACKED[:8], FRAME_BYTES + length) == (MAGIC, len(PACKED))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match="chunk: "):
        unpack(data, KEY)
