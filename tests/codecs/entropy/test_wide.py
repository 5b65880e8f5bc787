"""The entropy stage wide: chunks that decode apart, its cost beside context's, and what it refuses."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor

from kvtool.codecs import CodecError, Spec
from kvtool.codecs.entropy.context import Context
from kvtool.codecs.entropy.wide import Wide
from tests.codecs.entropy.test_context import STEP, bare, coefficients, fitted, quantized, spec_of


def coded(stage: Wide, tokens: int) -> tuple[dict[str, Tensor], Spec, Tensor]:
    payload = quantized(coefficients(30, tokens))
    spec = spec_of(payload)
    stage.plan(spec)
    return payload, spec, stage.encode(payload, spec)["x"]


@pytest.mark.parametrize("tokens", [0, 1, 100, 101, 350])
def test_chunks_are_equal_and_come_back(tokens: int) -> None:
    stage = Wide(bare(), step=STEP, chunk=100)
    payload, spec, stream = coded(stage, tokens)
    count = -(-tokens // 100)
    lengths = struct.unpack(f"<{1 + count}I", bytes(stream[: 4 + 4 * count].tolist()))
    assert len(stream) == 4 + 4 * count + sum(lengths)
    assert torch.equal(stage.decode({"x": stream}, spec)["codes"], payload["codes"])
    sizes = [len(chunk) for chunk in stage._chunks(spec)]
    assert sum(sizes) == tokens
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize(
    ("wanted", "decoded"), [(range(110, 120), range(87, 175)), (range(87, 176), range(87, 262))]
)
def test_only_chunks_that_are_wanted_are_decoded(wanted: range, decoded: range) -> None:
    stage = Wide(bare(), step=STEP, chunk=100)
    payload, spec, stream = coded(stage, 350)
    codes = stage.decode_tokens({"x": stream}, spec, wanted)["codes"]
    part = slice(decoded.start, decoded.stop)
    assert torch.equal(codes[part], payload["codes"][part])
    assert not codes[: part.start].any()
    assert not codes[part.stop :].any()


def test_it_takes_few_bytes_more_than_one_stream() -> None:
    held = fitted()
    payload, spec, stream = coded(Wide(held, step=STEP), 1000)
    one = Context(held, step=STEP).encode(payload, spec)["x"]
    assert len(stream) < 1.02 * len(one)


def test_what_is_wrong_is_named() -> None:
    stage = Wide(bare(), step=STEP, chunk=100)
    _, spec, stream = coded(stage, 350)
    with pytest.raises(CodecError, match=r"wide.*: x: \d+ bytes, expected \d+"):
        stage.decode({"x": stream[:-1]}, spec)
    broken = stream.clone()
    broken[-40] ^= 1
    with pytest.raises(CodecError, match=r"wide.*: x: a block of \d+ bytes"):
        stage.decode({"x": broken}, spec)
    for chunk in (0, 1 << 20):
        with pytest.raises(CodecError, match=r"chunk is .*, expected 1 to"):
            Wide(bare(), chunk=chunk)
    with pytest.raises(CodecError, match=r"step is .*, expected a positive number"):
        Wide(bare(), step=0.0)
