"""Coding of transform coefficients in lanes: the CPU gives the reference's bytes, codes and refusals, in few steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvtool.kernels import cpu, dispatch, reference
from kvtool.kernels.reference import wide
from kvtool.kernels.reference.context_model import Conditions
from tests.kernels.test_context import SHAPES, TABLES, codes_of, drawn, given_of, loudness_of

UNTOUCHED = 77


def outcome(kernels: Any, stream: Tensor, tokens: int, given: tuple[Tensor, Tensor, Tensor]) -> Any:
    """The codes of a stream; None where it is refused, and then nothing is written."""
    out = torch.full((tokens, len(given[1])), UNTOUCHED, dtype=torch.int16)
    try:
        kernels.wide_decode(stream, *given, TABLES, out)
    except ValueError:
        assert (out == UNTOUCHED).all()
        return None
    return out.tolist()


@pytest.mark.parametrize("largest", [0, 3, 100, 32767])
@pytest.mark.parametrize("shape", [*SHAPES, (9, 150)])
def test_the_reference_to_the_byte_and_back(kernels: Any, shape: tuple[int, int], largest: int) -> None:
    codes, given = codes_of(*shape, largest), given_of(*shape)
    if codes.numel() and largest == 32767:
        codes[0, 0], codes[-1, -1] = -32768, 32767
    stream = kernels.wide_encode(codes, *given, TABLES)
    assert stream.dtype == torch.uint8
    assert torch.equal(stream, reference.wide_encode(codes, *given, TABLES))
    assert outcome(kernels, stream, shape[0], given) == codes.tolist()


def test_exact_bytes(kernels: Any) -> None:
    """Shares of 16 but for zero's, in every table."""
    bounds = torch.arange(34, dtype=torch.int32) * 16
    bounds[17:] += (1 << 16) - 33 * 16
    tables = bounds.expand(len(TABLES), -1).contiguous()

    def encoded(*codes: int) -> str:
        given = torch.full((1,), 32).byte(), torch.zeros(len(codes)).int(), torch.zeros(len(codes), 2).char()
        stream = kernels.wide_encode(torch.tensor([codes], dtype=torch.int16), *given, tables)
        return bytes(stream.tolist()).hex(" ")

    # Nothing is coded: signs from component 1, not all are, and none.
    assert encoded(0, 0) == "01 00 00 00 00"
    # One group of 4 bytes. A share of 32 that begins at 2**16 - 512: 2**16 and a byte gone, over 32 and times 2**16.
    assert encoded(1) == "00 00 00 01 04 00 00 00 fe 08 00"
    # The sign is in the state: 2**16 + 1.
    assert encoded(-1) == "00 00 00 01 04 00 00 00 fe 08 01"
    # The second component alone is coded.
    assert encoded(0, 1) == "00 00 00 00 02 04 00 00 00 fe 08 00"


@pytest.mark.parametrize("components", [0, 1, 7, 64, 1154, 7296, 40_000])
def test_bands_are_few_and_hold_every_component_once(components: int) -> None:
    bands = wide.bands(components)
    assert [i for band in bands for i in band] == list(range(components))
    assert len(bands) <= wide.MOST + 10
    layout = wide.Layout.of(components, list(range(0, components, 3)), components // 2)
    assert [i for group in layout.groups for i in group] == list(range(len(layout.live)))
    assert max(map(len, layout.groups), default=0) <= wide.LANES
    assert all(layout.live[i] in band for lanes, band in zip(layout.bands, bands, strict=True) for i in lanes)


def test_no_code_needs_one_that_is_taken_in_the_same_step() -> None:
    """Token t of band b is taken in step t + b: what is taken then, or later, changes nothing of what is expected of it."""
    codes, given = codes_of(8, 30, 9), given_of(8, 30)
    layout = wide.Layout.of(30, list(range(30)), 12)

    def expected(codes: Tensor) -> dict[tuple[int, int], Any]:
        return {(t, layout.bands.index(band)): some for t, band, some in wide._walk(codes, layout, *given)}

    before = expected(codes)
    for step in (3, 6, 9):
        changed = codes.clone()
        for t in range(8):
            for b, band in enumerate(layout.bands):
                if t + b >= step:
                    changed[t, band.start : band.stop] += 100
        after = expected(changed)
        assert all(before[t, b] == after[t, b] for t, b in before if t + b <= step)
        assert any(before[place] != after[place] for place in before)


def test_it_costs_little_more_than_one_stream() -> None:
    """Components of falling size in tokens of changing loudness, as a transform's are."""
    generator = torch.Generator().manual_seed(3)
    tokens, components = 1024, 400
    size = 4 * 0.985 ** torch.arange(components)
    loud = torch.exp2(torch.randn(tokens, 1, generator=generator) / 2)
    noise = torch.distributions.Laplace(0.0, 1.0).icdf(
        torch.rand(tokens, components, generator=generator) * 0.999 + 5e-4
    )
    codes = (size * loud * noise).round().to(torch.int16)
    scales = (8 * size.log2()).round().int().clamp(min=-45)
    given = torch.full((tokens,), 32).byte(), scales, torch.zeros(components, 2).char()
    one = cpu.context_encode(codes, Conditions(*given, loudness_of(tokens)), TABLES)
    many = cpu.wide_encode(codes, *given, TABLES)
    assert len(many) < 1.02 * len(one)


def test_what_is_cut_off_or_goes_on_is_refused(kernels: Any) -> None:
    codes, given = codes_of(6, 9, 300), given_of(6, 9)
    stream = reference.wide_encode(codes, *given, TABLES)
    for length in range(0, len(stream), 9 if kernels.__name__.endswith("triton") else 1):
        assert outcome(kernels, stream[:length], 6, given) is None
    for more in (1, 2, 4, 8, 64):
        assert outcome(kernels, torch.cat([stream, stream[:more]]), 6, given) is None


def test_what_is_flipped_is_refused_or_gives_other_codes(kernels: Any) -> None:
    codes, given = codes_of(5, 7, 40), given_of(5, 7)
    stream = reference.wide_encode(codes, *given, TABLES)
    # An interpreted kernel takes a second for each.
    for i in range(0, len(stream), 9 if kernels.__name__.endswith("triton") else 1):
        flipped = stream.clone()
        flipped[i] ^= 1 << i % 8
        got = outcome(kernels, flipped, 5, given)
        assert got == outcome(reference, flipped, 5, given)
        assert got is None or got != codes.tolist()


@given(content=st.binary(max_size=60), shape=st.tuples(st.integers(0, 9), st.integers(0, 5)))
@settings(max_examples=60)
def test_any_bytes_are_decoded_or_refused_as_by_the_reference(content: bytes, shape: tuple[int, int]) -> None:
    stream, given = torch.tensor(list(content), dtype=torch.uint8), given_of(*shape)
    assert outcome(cpu, stream, shape[0], given) == outcome(reference, stream, shape[0], given)


@given(data=st.data(), shape=st.tuples(st.integers(1, 9), st.integers(1, 6)))
@settings(max_examples=60)
def test_all_codes_come_back_under_all_that_may_be_given(data: st.DataObject, shape: tuple[int, int]) -> None:
    codes, given = drawn(data, shape)
    stream = cpu.wide_encode(codes, *given, TABLES)
    assert torch.equal(stream, reference.wide_encode(codes, *given, TABLES))
    assert outcome(cpu, stream, shape[0], given) == codes.tolist()


def test_the_door_refuses_what_no_kernel_takes() -> None:
    codes, given = codes_of(2, 3, 5), given_of(2, 3)
    far = torch.tensor([32, 65], dtype=torch.uint8), *given[1:]
    with pytest.raises(ValueError, match="exponent 65, expected at most 64"):
        dispatch.wide_encode(codes, *far, TABLES)
    with pytest.raises(ValueError, match="no kernels for a tensor on meta"):
        dispatch.wide_decode(torch.zeros(9, dtype=torch.uint8), *given, TABLES, codes.to("meta"))
