"""Coding of transform coefficients: the CPU gives the reference's bytes, codes, counts, loudness and refusals."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvtool.codecs.entropy_models.context import cumulative
from kvtool.kernels import cpu, dispatch, reference
from kvtool.kernels.reference import context_model as model
from kvtool.kernels.reference.context_model import Conditions

IMPLEMENTATIONS = {"reference": reference, "cpu": cpu}
TABLES = cumulative(None)
UNTOUCHED = 77


@pytest.fixture(params=list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS))
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    implementation: ModuleType = request.param
    return implementation


def given_of(tokens: int, components: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Exponents, scales and weights of prediction, up to what is allowed."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(20, 45, (tokens,), generator=generator)
    exponents[::7] = torch.randint(0, 65, exponents[::7].shape, generator=generator)
    scales = torch.randint(-45, 105, (components,), generator=generator).sort(descending=True).values
    weights = torch.randint(-128, 128, (components, 2), generator=generator)
    return exponents.to(torch.uint8), scales.int(), weights.to(torch.int8)


def codes_of(tokens: int, components: int, largest: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(tokens, components, generator=generator) ** 9 * largest / 50
    return wide.clamp(-largest, largest).to(torch.int16)


def drawn(data: st.DataObject, shape: tuple[int, int]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Any codes, and any exponents, scales and weights."""

    def each(low: int, high: int, *sizes: int) -> Tensor:
        n = torch.Size(sizes).numel()
        entries = data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n))
        return torch.tensor(entries).view(sizes)

    codes = each(-32768, 32767, *shape).short()
    scales, weights = each(-45, 104, shape[1]).int(), each(-128, 127, shape[1], 2).char()
    return codes, (each(0, 64, shape[0]).byte(), scales, weights)


def loudness_of(tokens: int) -> Tensor:
    return torch.full((tokens,), model.ONE, dtype=torch.int32)


def outcome(kernels: Any, stream: Tensor, tokens: int, given: tuple[Tensor, Tensor, Tensor]) -> Any:
    """The codes and the loudness that a stream leaves; None where it is refused."""
    out, loudness = torch.full((tokens, len(given[1])), UNTOUCHED, dtype=torch.int16), loudness_of(tokens)
    try:
        kernels.context_decode(stream, Conditions(*given, loudness), TABLES, out)
    except ValueError:
        return None
    return out.tolist(), loudness.tolist()


SHAPES = [(0, 3), (3, 0), (1, 1), (7, 5), (40, 23)]


@pytest.mark.parametrize("largest", [0, 3, 100, 32767])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_to_the_byte_and_back(kernels: Any, shape: tuple[int, int], largest: int) -> None:
    codes, given = codes_of(*shape, largest), given_of(*shape)
    if codes.numel() and largest == 32767:
        codes[0, 0], codes[-1, -1] = -32768, 32767
    loudness, expected = loudness_of(shape[0]), loudness_of(shape[0])
    stream = kernels.context_encode(codes, Conditions(*given, loudness), TABLES)
    assert stream.dtype == torch.uint8
    assert torch.equal(stream, reference.context_encode(codes, Conditions(*given, expected), TABLES))
    assert torch.equal(loudness, expected)
    assert outcome(kernels, stream, shape[0], given) == (codes.tolist(), loudness.tolist())
    counts, known = (torch.ones(len(TABLES), model.SYMBOLS, dtype=torch.int64) for _ in range(2))
    kernels.context_count(codes, Conditions(*given, loudness_of(shape[0])), counts)
    reference.context_count(codes, Conditions(*given, loudness_of(shape[0])), known)
    assert torch.equal(counts, known)
    assert counts.sum() - counts.numel() == codes.numel()


def test_exact_bytes(kernels: Any) -> None:
    """Shares of 16 but for zero's, in every table."""
    bounds = torch.arange(model.SYMBOLS + 1, dtype=torch.int32) * 16
    bounds[17:] += (1 << 16) - 33 * 16
    tables = bounds.expand(len(TABLES), -1).contiguous()

    def encoded(*codes: int) -> str:
        given = torch.full((1,), 32).byte(), torch.zeros(len(codes)).int(), torch.zeros(len(codes), 2).char()
        row = torch.tensor([codes], dtype=torch.int16)
        return bytes(kernels.context_encode(row, Conditions(*given, loudness_of(1)), tables).tolist()).hex(
            " ", 4
        )

    assert encoded() == "00000000 01000000"
    # 2**32 over 16 and times 2**16, and the symbol's start: 17 shares on, one of them large, or 15.
    assert encoded(1) == "00ff0000 00100000"
    assert encoded(-1) == "f0000000 00100000"


@pytest.mark.parametrize("eighths", range(-45, 105))
def test_powers_and_logarithms_are_what_they_are_called(eighths: int) -> None:
    exact = 2 ** (eighths / 8)
    assert model.power(eighths) == pytest.approx(exact * model.ONE, rel=1e-4, abs=1)
    assert model.log2(model.power(eighths)) / 64 == pytest.approx(eighths / 8, abs=0.05)


def test_bands_go_on_where_those_in_front_of_them_ended(kernels: Any) -> None:
    codes, given = codes_of(30, 20, 50), given_of(30, 20)
    whole, parts = loudness_of(30), loudness_of(30)
    kernels.context_encode(codes, Conditions(*given, whole), TABLES)
    for part in (slice(0, 9), slice(9, 20)):
        own = given[0], given[1][part], given[2][part]
        kernels.context_encode(codes[:, part], Conditions(*own, parts), TABLES)
    assert torch.equal(whole, parts)
    out, loudness = torch.full((30, 20), UNTOUCHED, dtype=torch.int16), loudness_of(30)
    own = given[0], given[1][:9], given[2][:9]
    stream = reference.context_encode(codes[:, :9], Conditions(*own, loudness_of(30)), TABLES)
    kernels.context_decode(stream, Conditions(*own, loudness), TABLES, out[:, :9])
    assert torch.equal(out[:, :9], codes[:, :9])
    assert (out[:, 9:] == UNTOUCHED).all()


def test_what_is_cut_off_or_goes_on_is_refused(kernels: Any) -> None:
    codes, given = codes_of(6, 9, 300), given_of(6, 9)
    stream = reference.context_encode(codes, Conditions(*given, loudness_of(6)), TABLES)
    assert len(stream) > 16
    for length in range(len(stream)):
        assert outcome(kernels, stream[:length], 6, given) is None
    for more in (1, 2, 4, 8, 64):
        assert outcome(kernels, torch.cat([stream, stream[:more]]), 6, given) is None


def test_what_is_flipped_is_refused_or_gives_other_codes(kernels: Any) -> None:
    codes, given = codes_of(5, 7, 40), given_of(5, 7)
    stream = reference.context_encode(codes, Conditions(*given, loudness_of(5)), TABLES)
    for i in range(len(stream)):
        flipped = stream.clone()
        flipped[i] ^= 1 << i % 8
        got = outcome(kernels, flipped, 5, given)
        assert got == outcome(reference, flipped, 5, given)
        assert got is None or got[0] != codes.tolist()


@given(content=st.binary(max_size=60), shape=st.tuples(st.integers(0, 9), st.integers(0, 5)))
@settings(max_examples=60)
def test_any_bytes_are_decoded_or_refused_as_by_the_reference(content: bytes, shape: tuple[int, int]) -> None:
    stream, given = torch.tensor(list(content), dtype=torch.uint8), given_of(*shape)
    assert outcome(cpu, stream, shape[0], given) == outcome(reference, stream, shape[0], given)


@given(data=st.data(), shape=st.tuples(st.integers(1, 9), st.integers(1, 6)))
@settings(max_examples=60)
def test_all_codes_come_back_under_all_that_may_be_given(data: st.DataObject, shape: tuple[int, int]) -> None:
    codes, given = drawn(data, shape)
    loudness = loudness_of(shape[0])
    stream = cpu.context_encode(codes, Conditions(*given, loudness), TABLES)
    assert torch.equal(
        stream, reference.context_encode(codes, Conditions(*given, loudness_of(shape[0])), TABLES)
    )
    assert outcome(cpu, stream, shape[0], given) == (codes.tolist(), loudness.tolist())


def test_the_door_refuses_what_no_kernel_takes() -> None:
    codes, given = codes_of(2, 3, 5), given_of(2, 3)
    far = torch.tensor([32, 65], dtype=torch.uint8), *given[1:]
    with pytest.raises(ValueError, match="exponent 65, expected at most 64"):
        dispatch.context_encode(codes, Conditions(*far, loudness_of(2)), TABLES)
    with pytest.raises(ValueError, match="no kernels for a tensor on meta"):
        dispatch.context_encode(codes.to("meta"), Conditions(*given, loudness_of(2)), TABLES)
