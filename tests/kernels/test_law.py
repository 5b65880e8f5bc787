"""One law for every kernel: each implementation gives the reference's bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.kernels import dispatch

IMPLEMENTATIONS = dispatch.implementations()
REFERENCE = IMPLEMENTATIONS["reference"]

each_implementation = pytest.mark.parametrize("kernels", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def random_codes(n: int, bits: int) -> torch.Tensor:
    return torch.randint(0, 1 << bits, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@each_implementation
@given(data=st.data(), bits=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_unpack_undoes_pack(kernels: dispatch.Kernels, data: st.DataObject, bits: int) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=70)), dtype=torch.uint8)
    packed = kernels.pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (dispatch.packed_size(len(codes), bits),)
    assert torch.equal(packed, REFERENCE.pack(codes, bits))
    assert torch.equal(kernels.unpack(packed, len(codes), bits), codes)


@each_implementation
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_pack_and_unpack_agree_with_the_reference(kernels: dispatch.Kernels, n: int, bits: int) -> None:
    codes = random_codes(n, bits)
    packed = REFERENCE.pack(codes, bits)
    before = packed.clone()
    assert torch.equal(kernels.pack(codes, bits), packed)
    assert torch.equal(kernels.unpack(packed, n, bits), codes)
    assert torch.equal(packed, before)


@each_implementation
def test_exact_packed_bytes(kernels: dispatch.Kernels) -> None:
    codes = torch.tensor([1, 2, 3, 0, 1], dtype=torch.uint8)
    assert kernels.pack(codes, 2).tolist() == [0b01_11_01, 0b00_10]
    assert kernels.pack(codes, 3).tolist() == [0b01_11_01, 0b00_10, 0]
    assert kernels.pack(torch.tensor([5, 7], dtype=torch.uint8), 3).tolist() == [0b11_01, 0b1_1]


@each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("shape", [(2, 64, 32), (1, 1, 1), (3, 0, 8), (2, 33, 19), (1, 5, 0), (2, 3, 7)])
@pytest.mark.parametrize("group", [1, 4, 32])
def test_dequantize(
    kernels: dispatch.Kernels, shape: tuple[int, int, int], axis: int, group: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    grouped = list(shape)
    grouped[axis] = -(-shape[axis] // group)
    scale = torch.rand(grouped, generator=generator).half()
    zero = torch.randn(grouped, generator=generator).half()
    # A window of a longer tensor, as decoding has it.
    expected, got = (torch.zeros(shape[0], shape[1] + 3, shape[2], dtype=dtype) for _ in range(2))
    REFERENCE.dequantize(codes, scale, zero, axis, group, expected[:, : shape[1]])
    kernels.dequantize(codes, scale, zero, axis, group, got[:, : shape[1]])
    assert torch.equal(got, expected)
    assert not got[:, shape[1] :].any()
