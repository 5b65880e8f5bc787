"""One law for every kernel: each implementation gives the reference's bits.

That goes for floats too: what is rounded when is part of each kernel's contract, and products are never fused
with sums, in Triton because its kernels ask for that. Attention alone is a sum whose order is free. Triton's
interpreter shows that kernels compute the right thing; that a GPU does the same is left to a machine that has one.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.kernels import dispatch
from kvtool.kernels import reference as REFERENCE


def assert_agrees(kernels: dispatch.Kernels, got: torch.Tensor, expected: torch.Tensor) -> None:
    if got.dtype == torch.bfloat16 and kernels.__name__.endswith("triton"):  # type: ignore[attr-defined]
        # Triton's interpreter cuts off what bfloat16 does not hold, where a GPU rounds: one unit of the last
        # place.
        torch.testing.assert_close(got, expected, rtol=2**-7, atol=0)
    else:
        assert torch.equal(got, expected)


def random_codes(n: int, bits: int) -> torch.Tensor:
    return torch.randint(0, 1 << bits, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@given(data=st.data(), bits=st.integers(1, 8))
@settings(max_examples=60)
def test_unpack_undoes_pack(kernels: dispatch.Kernels, data: st.DataObject, bits: int) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=70)), dtype=torch.uint8)
    packed = kernels.pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (dispatch.packed_size(len(codes), bits),)
    assert torch.equal(packed, REFERENCE.pack(codes, bits))
    assert torch.equal(kernels.unpack(packed, len(codes), bits), codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_pack_and_unpack_agree_with_the_reference(kernels: dispatch.Kernels, n: int, bits: int) -> None:
    codes = random_codes(n, bits)
    packed = REFERENCE.pack(codes, bits)
    before = packed.clone()
    assert torch.equal(kernels.pack(codes, bits), packed)
    assert torch.equal(kernels.unpack(packed, n, bits), codes)
    assert torch.equal(packed, before)


def test_exact_packed_bytes(kernels: dispatch.Kernels) -> None:
    codes = torch.tensor([1, 2, 3, 0, 1], dtype=torch.uint8)
    assert kernels.pack(codes, 2).tolist() == [0b01_11_01, 0b00_10]
    assert kernels.pack(codes, 3).tolist() == [0b01_11_01, 0b00_10, 0]
    assert kernels.pack(torch.tensor([5, 7], dtype=torch.uint8), 3).tolist() == [0b11_01, 0b1_1]


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
    assert_agrees(kernels, got, expected)
    assert not got[:, shape[1] :].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("shape", [(2, 64, 32), (1, 1, 2), (3, 0, 8), (2, 33, 20), (1, 600, 6)])
@pytest.mark.parametrize("passing", [0, 2])
@pytest.mark.parametrize("in_place", [False, True])
def test_rotate(
    kernels: dispatch.Kernels,
    shape: tuple[int, int, int],
    passing: int,
    layout: dispatch.Layout,
    dtype: torch.dtype,
    in_place: bool,
) -> None:
    generator = torch.Generator().manual_seed(2)
    heads, tokens, size = shape
    cos, sin = (torch.randn(tokens, (size - passing) // 2, generator=generator) for _ in range(2))
    # As attention has it before heads are brought forward, and a window of a longer tensor.
    x = torch.randn(tokens, heads, size, generator=generator).to(dtype).transpose(0, 1)
    expected, got = (torch.zeros(heads, tokens + 3, size, dtype=dtype) for _ in range(2))
    REFERENCE.rotate(x, cos, sin, layout, expected[:, :tokens])
    if in_place:
        got[:, :tokens] = x
        kernels.rotate(got[:, :tokens], cos, sin, layout, got[:, :tokens])
    else:
        before = x.clone()
        kernels.rotate(x, cos, sin, layout, got[:, :tokens])
        assert torch.equal(x, before)
    assert_agrees(kernels, got, expected)


@pytest.mark.parametrize("n", [1, 2, 4, 64, 128, 2048])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
@pytest.mark.parametrize("in_place", [False, True])
def test_hadamard(kernels: dispatch.Kernels, rows: int, n: int, in_place: bool) -> None:
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(3))
    expected, got = torch.empty_like(x), x.clone() if in_place else torch.empty_like(x)
    REFERENCE.hadamard(x, expected)
    kernels.hadamard(got if in_place else x, got)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("n", [1, 2, 8, 128])
def test_hadamard_multiplies_by_sylvesters_matrix_and_undoes_itself(
    kernels: dispatch.Kernels, n: int
) -> None:
    matrix = torch.ones(1, 1)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    x = torch.randn(5, n, generator=torch.Generator().manual_seed(4))
    once, twice = torch.empty_like(x), torch.empty_like(x)
    kernels.hadamard(x, once)
    kernels.hadamard(once, twice)
    torch.testing.assert_close(once, x @ matrix / n**0.5)
    torch.testing.assert_close(twice, x)


def test_the_door_refuses_what_no_kernel_can_do() -> None:
    x, angles = torch.zeros(1, 3, 4), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="layout is 'quarter', expected one of half, interleaved"):
        dispatch.rotate(x, angles, angles, "quarter", x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 angles for 3 channels"):
        dispatch.rotate(x[..., :3], angles, angles, "half", x)
    with pytest.raises(ValueError, match="rows of 3 entries, expected a power of two"):
        dispatch.hadamard(x[0, :, :3], x[0, :, :3])
    with pytest.raises(ValueError, match="no kernels for a tensor on meta"):
        dispatch.pack(torch.zeros(8, dtype=torch.uint8, device="meta"), 2)


def test_triton_is_not_imported_for_the_cpu() -> None:
    code = (
        "import sys\nfrom kvtool.kernels import dispatch\nassert set(dispatch.implementations()) >= {'cpu'}\n"
        "assert 'kvtool.kernels.triton' not in sys.modules"
    )
    without = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=without)
