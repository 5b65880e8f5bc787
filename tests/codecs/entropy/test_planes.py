from __future__ import annotations

import struct

import pytest
import torch
import zstandard

from kvtool.codecs import Array, CodecError, Spec
from kvtool.codecs.entropy.planes import Planes

N = 4096
SPEC = Spec({"x": Array((N,), torch.uint8)})


def stored(block: bytes, length: int | None = None) -> dict[str, torch.Tensor]:
    data = struct.pack("<Q", len(block) if length is None else length) + block
    return {"x": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def frame(content: bytes, *, checksum: bool = True, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size).compress(content)


def test_every_dtype_comes_back_exactly() -> None:
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.bool,
    ):
        x = (torch.randn(3, 50, 7) * 100).to(dtype)
        spec = Spec({"x": Array((3, 50, 7), dtype)})
        assert torch.equal(Planes().decode(Planes().encode({"x": x}, spec), spec)["x"], x)


def test_noise_is_stored_raw_and_grows_by_its_lengths_only() -> None:
    x = torch.randint(0, 256, (N,), dtype=torch.uint8)
    assert Planes().encode({"x": x}, SPEC)["x"].numel() == N + 8


def test_frames_carry_a_checksum() -> None:
    encoded = Planes().encode({"x": torch.zeros(N, dtype=torch.uint8)}, SPEC)["x"]
    assert zstandard.get_frame_parameters(encoded[8:].numpy().tobytes()).has_checksum


@pytest.mark.parametrize(
    "hostile",
    [
        stored(frame(bytes(1 << 26))),
        stored(frame(bytes(N - 1))),
        stored(frame(bytes(N), checksum=False)),
        stored(frame(bytes(N), size=False)),
        stored(frame(bytes(N)) + b"trailing"),
        stored(frame(bytes(N)) + frame(bytes(N))),
        stored(frame(bytes(N))[:-1]),
        stored(frame(bytes(N)), length=1 << 63),
        stored(b""),
        stored(b"not zstd"),
        {"x": torch.zeros(3, dtype=torch.uint8)},
        {"x": torch.zeros(0, dtype=torch.uint8)},
    ],
)
def test_hostile_frames_are_refused(hostile: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CodecError, match="planes"):
        Planes().decode(hostile, SPEC)


def test_a_frame_that_claims_more_than_zstd_can_hold_is_refused_before_room_is_made() -> None:
    size = 1 << 45
    header = b"\x28\xb5\x2f\xfd" + bytes([0b11_1_0_0_1_00]) + size.to_bytes(8, "little") + bytes(40)
    with pytest.raises(CodecError, match="cannot hold"):
        Planes().decode(stored(header), Spec({"x": Array((size,), torch.uint8)}))
