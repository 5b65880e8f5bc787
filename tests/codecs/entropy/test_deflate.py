from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor

from kvtool.codecs import Array, CodecError, Payload, Spec
from kvtool.codecs.entropy.deflate import Deflate
from kvtool.codecs.entropy.pack import Pack

CODES = Array((1, 400, 10), torch.uint8, levels=8)
SCALE = Array((1, 400, 1), torch.float16)
SPEC = Spec({"scale": SCALE, "codes": CODES, "odd": Array((3,), torch.uint8)})
RAW = 400 * 10 * 3 // 8 + 400 * 2 + 3


def noise() -> Tensor:
    return torch.randint(0, 8, CODES.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def payload() -> Payload:
    codes, odd = noise(), torch.tensor([1, 2, 3], dtype=torch.uint8)
    return {"codes": codes * (codes > 6), "scale": torch.rand(SCALE.shape).half(), "odd": odd}


def refused(stream: bytes, match: str) -> None:
    with pytest.raises(CodecError, match=f"entropy stage 'deflate': x: .*{match}"):
        Deflate().decode({"x": as_bytes(stream)}, SPEC)


def as_bytes(content: bytes) -> Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def test_one_zlib_stream_of_the_packed_tensors_by_name() -> None:
    x = payload()
    stream = bytes(Deflate().encode(x, SPEC)["x"].numpy())
    packed = Pack().encode(x, SPEC)
    content = zlib.decompress(stream)
    assert content == b"".join(bytes(packed[name].numpy().tobytes()) for name in ("codes", "odd", "scale"))
    assert len(content) == RAW == Deflate().plan(SPEC).arrays["x"].numel
    assert len(stream) < 0.9 * RAW


def test_noise_takes_no_more_than_packed() -> None:
    spec = Spec({"codes": CODES})
    stored = Deflate().encode({"codes": noise()}, spec)["x"]
    assert torch.equal(stored, Pack().encode({"codes": noise()}, spec)["codes"])
    assert torch.equal(Deflate().decode({"x": stored}, spec)["codes"], noise())


def test_streams_of_other_content_are_refused() -> None:
    good = bytes(Deflate().encode(payload(), SPEC)["x"].numpy())
    content = zlib.decompress(good)
    refused(zlib.compress(content[:-1]), f"does not end at {RAW} bytes")
    refused(zlib.compress(content + b"\0"), f"does not end at {RAW} bytes")
    refused(good + b"\0", f"does not end at {RAW} bytes")
    refused(good[:-1], f"does not end at {RAW} bytes")
    refused(good[:-4] + b"\0\0\0\0", "incorrect data check")
    refused(b"", f"0 bytes of DEFLATE cannot hold {RAW}")


def test_a_bomb_is_not_inflated() -> None:
    refused(zlib.compress(bytes(1 << 24), 9)[: RAW - 1], f"does not end at {RAW} bytes")
    large = Spec({"x": Array((1 << 40,), torch.float32)})
    with pytest.raises(CodecError, match="4 bytes of DEFLATE cannot hold"):
        Deflate().decode({"x": torch.zeros(4, dtype=torch.uint8)}, large)


def test_codes_past_their_levels_are_refused() -> None:
    spec = Spec({"codes": Array((1, 4, 2), torch.uint8, levels=5)})
    stream = Deflate().encode({"codes": torch.full((1, 4, 2), 4, dtype=torch.uint8)}, spec)["x"]
    stream = stream.clone()
    stream[0] = 0xFF
    with pytest.raises(CodecError, match="holds code 7, expected below 5"):
        Deflate().decode({"x": stream}, spec)


@pytest.mark.parametrize("level", [0, 10, -1])
def test_levels_that_zlib_has_not_are_refused(level: int) -> None:
    with pytest.raises(CodecError, match=f"level is {level}, expected 1 to 9"):
        Deflate(level=level)
