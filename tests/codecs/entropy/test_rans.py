"""Coding of codes by rANS: never longer than packed, decoded block by block, and nothing hostile gets through."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvtool.codecs import CodecError
from kvtool.codecs.block_coder import Coding
from kvtool.codecs.entropy.rans import Rans
from kvtool.codecs.entropy_models import MODELS
from kvtool.codecs.spec import Array, Spec
from kvtool.kernels import dispatch

HEAD = 1
"""The byte that names the model."""


def bell(*shape: int, levels: int) -> Tensor:
    """Codes about the middle, so that they take well less than when packed."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(levels))
    return (levels / 2 + x * levels / 12).clamp(0, levels - 1).to(torch.uint8)


def noise(*shape: int, levels: int) -> Tensor:
    return torch.randint(0, levels, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def coding(codes: Tensor, levels: int, block: int) -> Coding:
    return Coding(Array(tuple(codes.shape), torch.uint8, levels=levels), block)


def packed_size(codes: Tensor, levels: int) -> int:
    return dispatch.packed_size(codes.numel(), max((levels - 1).bit_length(), 1))


def lengths(data: Tensor, blocks: int) -> list[int]:
    """Those of the model's side bytes and of each block."""
    return list(struct.unpack_from(f"<{blocks + 1}I", bytes(data.tolist()), HEAD))


@pytest.mark.parametrize("levels", [1, 2, 3, 15, 16, 31, 64, 65, 255, 256])
@pytest.mark.parametrize("shape", [(2, 100, 6), (2, 3, 40, 5), (300,), (1, 1, 1), (3, 0, 4), (2, 9, 0), (0,)])
@pytest.mark.parametrize("make", [bell, noise])
def test_round_trip_and_bound(make: Any, shape: tuple[int, ...], levels: int) -> None:
    codes = make(*shape, levels=levels)
    for block in (7, 1024):
        coder = coding(codes, levels, block)
        data = coder.encode(codes)
        assert data.dtype == torch.uint8
        assert len(data) <= coder.bound == HEAD + packed_size(codes, levels)
        assert torch.equal(coder.decode(data), codes)


@pytest.mark.parametrize(("levels", "share"), [(15, 0.7), (31, 0.75), (255, 0.9)])
def test_bells_take_less_than_packed(levels: int, share: float) -> None:
    codes = bell(3, 512, 32, levels=levels)
    assert len(coding(codes, levels, 256).encode(codes)) < share * packed_size(codes, levels)


def test_blocks_that_would_grow_are_packed() -> None:
    calm, wild = torch.full((2, 64, 8), 3, dtype=torch.uint8), noise(2, 64, 8, levels=16)
    codes = torch.cat([calm, calm, calm, wild, calm, wild[:, :40]], 1)
    coder = coding(codes, 16, 64)
    data = coder.encode(codes)
    _, *blocks = lengths(data, 6)
    packed = [length == size for length, size in zip(blocks, [512] * 5 + [320], strict=True)]
    assert packed == [False, False, False, True, False, True]
    assert torch.equal(coder.decode(data), codes)
    assert data[-320:].tolist() == dispatch.pack(wild[:, :40].flatten(), 4).tolist()
    # Nothing but noise: the byte 0, and all of it packed.
    whole = coding(wild, 16, 64).encode(wild)
    assert whole.tolist() == [0, *dispatch.pack(wild.flatten(), 4).tolist()]


def test_the_model_that_takes_least_is_chosen() -> None:
    few, many = bell(1, 50, 16, levels=15), bell(1, 4096, 16, levels=15)
    moving = torch.arange(16, dtype=torch.uint8) // 2
    humps = torch.where(noise(1, 4096, 16, levels=2) > 0, many // 2, 14 - many // 2) + moving
    mask = (noise(4, 300, 1, levels=100) == 0).to(torch.uint8)
    chosen = []
    for codes, levels in ((mask, 2), (few, 15), (many + moving, 22), (humps, 22)):
        data = coding(codes, levels, 1024).encode(codes)
        chosen.append(type(MODELS[int(data[0]) - 1]).__name__)
    assert chosen == ["Shared", "Shared", "Parametric", "Corrected"]


@pytest.mark.parametrize("wanted", [range(70), range(20, 21), range(15, 33), range(64, 70), range(48, 64)])
def test_tokens_decode_their_blocks_alone(wanted: range, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = bell(2, 70, 20, levels=15) + 1
    codes[:, 32:48] = noise(2, 16, 20, levels=15) + 1
    coder = coding(codes, 17, 16)
    data = coder.encode(codes)
    first, last = wanted.start // 16 * 16, min(-(-wanted.stop // 16) * 16, 70)
    decoded, decode = [], dispatch.rans_decode

    def noticed(stream: Tensor, blocks: Tensor, *rest: Any) -> None:
        decoded.extend(blocks[:, 2].tolist())
        decode(stream, blocks, *rest)

    monkeypatch.setattr(dispatch, "rans_decode", noticed)
    got = coder.decode(data, wanted)
    # Corrections are coded by rANS as well, from token 0 on.
    assert set(decoded) <= {0, *range(first, last, 16)}
    assert torch.equal(got[:, first:last], codes[:, first:last])
    assert not got[:, :first].any()
    assert not got[:, last:].any()


def hostile(data: Tensor, blocks: int) -> list[Tensor]:
    """The bytes with lengths that are absurd, and with lengths that agree in sum but not with what they say."""
    found = []
    for field, value in itertools.product(range(blocks + 1), [0, 1, 1 << 16, (1 << 31) - 1, (1 << 32) - 1]):
        content = bytearray(data.tolist())
        struct.pack_into("<I", content, HEAD + 4 * field, value)
        found.append(torch.tensor(list(content), dtype=torch.uint8))
    for a, b in itertools.permutations(range(blocks + 1), 2):
        own = lengths(data, blocks)
        own[a], own[b] = own[a] + own[b], 0
        content = bytearray(data.tolist())
        struct.pack_into(f"<{blocks + 1}I", content, HEAD, *own)
        found.append(torch.tensor(list(content), dtype=torch.uint8))
    return found


@pytest.mark.parametrize("make", [bell, noise])
def test_other_lengths_are_refused(make: Any) -> None:
    codes = make(2, 40, 12, levels=15)
    coder = coding(codes, 15, 16)
    data = coder.encode(codes)
    assert (int(data[0]) == 0) == (make is noise)
    wrong = [data[:n] for n in range(len(data))] + [torch.cat([data, data[:n]]) for n in (1, 2, 400)]
    for content in wrong + (hostile(data, 3) if make is bell else []):
        with pytest.raises(CodecError):
            coder.decode(content)
    for number in (len(MODELS) + 1, 255):
        data[0] = number
        with pytest.raises(CodecError, match=f"starts with .{number}., expected the number of a model"):
            coder.decode(data)


def test_lengths_are_refused_before_room_is_made() -> None:
    # 4 TiB of codes, in a million blocks or in as many as tokens.
    for block in (1 << 19, 1):
        coder = Coding(Array((8, 1 << 39, 1), torch.uint8, levels=16), block)
        for content in ([], [0], [0] * 100, [1] * 100, [2] + [0] * 100):
            with pytest.raises(CodecError):
                coder.decode(torch.tensor(content, dtype=torch.uint8))


def test_codes_beyond_their_levels_are_refused() -> None:
    codes = bell(1, 9, 4, levels=15)
    codes[0, 5, 2] = 15
    with pytest.raises(CodecError, match="code 15, expected below 15"):
        coding(codes, 15, 4).encode(codes)
    packed = torch.cat([torch.zeros(1, dtype=torch.uint8), dispatch.pack(codes.flatten(), 4)])
    with pytest.raises(CodecError, match="code 15, expected below 15"):
        coding(codes, 15, 4).decode(packed)
    with pytest.raises(CodecError, match=r"'rans': codes: holds code 15"):
        Rans().encode({"codes": codes}, Spec({"codes": Array((1, 9, 4), torch.uint8, levels=15)}))


def payload() -> tuple[dict[str, Tensor], Spec]:
    """Codes of many levels and few, a mask, an index, scales, and something empty."""
    tensors = {
        "codes": bell(2, 40, 12, levels=15),
        "outliers": bell(2, 40, 3, levels=200),
        "mask": (noise(2, 40, 1, levels=50) == 0).to(torch.uint8),
        "index": torch.arange(40, dtype=torch.int32),
        "scale": torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(2)).half(),
        "empty": torch.zeros(2, 0, 12, dtype=torch.uint8),
    }
    levels = {"codes": 15, "outliers": 200, "mask": 2, "empty": 4}
    arrays = {n: Array(tuple(t.shape), t.dtype, levels=levels.get(n)) for n, t in tensors.items()}
    return tensors, Spec(arrays)


def test_the_stage_is_never_larger_than_packed_and_a_few_bytes() -> None:
    tensors, spec = payload()
    for make in (bell, noise):
        tensors["codes"] = make(2, 40, 12, levels=15)
        encoded = Rans(block=16).encode(tensors, spec)
        Rans(block=16).plan(spec).check(encoded, "rans")
        own = {name: spec.arrays[name] for name in ("codes", "outliers", "mask", "empty")}
        sizes = sum(packed_size(tensors[name], array.levels or 0) for name, array in own.items())
        alone = {name: tensors[name] for name in own}
        encoded = Rans(block=16).encode(alone, Spec(own))
        assert len(encoded["x"]) <= sizes + 5 * len(own)
        decoded = Rans(block=16).decode(encoded, Spec(own))
        assert all(torch.equal(decoded[name], alone[name]) for name in own)
    assert len(Rans().encode({}, Spec({}))["x"]) == 0
    assert Rans().decode({"x": torch.zeros(0, dtype=torch.uint8)}, Spec({})) == {}


def test_the_stage_leaves_out_only_what_has_the_axis_of_tokens() -> None:
    tensors, spec = payload()
    stage = Rans(block=8)
    decoded = stage.decode_tokens(stage.encode(tensors, spec), spec, range(8, 20))
    assert torch.equal(decoded["codes"][:, 8:24], tensors["codes"][:, 8:24])
    assert not decoded["codes"][:, :8].any()
    assert not decoded["codes"][:, 24:].any()
    assert all(torch.equal(decoded[name], tensors[name]) for name in tensors if name != "codes")


def test_the_stage_refuses_what_is_cut_off_or_goes_on() -> None:
    tensors, spec = payload()
    data = Rans().encode(tensors, spec)["x"]
    for content in (*(data[:n] for n in range(0, len(data), 5)), data[:-1], torch.cat([data, data[:1]])):
        with pytest.raises(CodecError, match=r"entropy stage 'rans'|lengths"):
            Rans().decode({"x": content}, spec)


def test_corruptions_are_decoded_to_the_plan_or_refused() -> None:
    tensors, spec = payload()
    stage = Rans(block=16)
    data = stage.encode(tensors, spec)["x"].numpy()
    generator, refused = np.random.default_rng(7), 0
    for _ in range(400):
        content = data.copy()
        # Half of them near the front, where lengths and models are.
        end = len(data) if generator.random() < 0.5 else 60
        for place in generator.integers(0, end, generator.integers(1, 4)):
            content[place] = generator.integers(0, 256)
        start, stop = sorted(generator.integers(0, len(data), 2))
        kind = generator.integers(0, 8)
        if kind == 0:
            content = content[:stop]
        elif kind == 1:
            content = np.concatenate([content[:start], content[stop:]])
        elif kind == 2:
            content = np.concatenate([content, content[start:stop]])
        try:
            decoded = stage.decode({"x": torch.from_numpy(content.copy())}, spec)
        except CodecError:
            refused += 1
            continue
        spec.check(decoded, "rans")
        for name, array in spec.arrays.items():
            if array.levels and array.numel:
                assert int(decoded[name].max()) < array.levels
    assert refused > 200


def test_few_bytes_are_not_taken_for_many_codes() -> None:
    """Refused before there is room for the codes, or for tables of more channels than there are bytes."""
    for shape in ((1, 1 << 30, 64), (1, 1, 1 << 24)):
        coder = Coding(Array(shape, torch.uint8, levels=256), (1 << 20) - 1)
        blocks = -(-shape[1] // coder.block)
        for number in range(1, len(MODELS) + 1):
            side = MODELS[number - 1].nbytes(min(shape[2], 64), 256, shape[1])
            head = struct.pack(f"<B{blocks + 1}I", number, side, *(64,) * blocks)
            data = torch.frombuffer(bytearray(head + bytes(side + 64 * blocks)), dtype=torch.uint8)
            with pytest.raises(CodecError, match=r"cannot hold|probabilities"):
                coder.decode(data)


def test_what_never_changes_is_coded_however_long_it_is() -> None:
    for levels in (2, 64, 65, 256):
        codes = torch.zeros((1, 300_000, 2), dtype=torch.uint8)
        coder = coding(codes, levels, (1 << 20) - 1)
        data = coder.encode(codes)
        assert len(data) < packed_size(codes, levels) / 20
        assert torch.equal(coder.decode(data), codes)
