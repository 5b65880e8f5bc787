"""Attention to packed tokens: every implementation gives what the reference gives, up to the order of summation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.kernels import dispatch
from kvtool.kernels import reference as REFERENCE

PLACES = 12

BOUND = {torch.float32: 1e-5, torch.float16: 2e-3}
"""Largest differences. Triton's interpreter cannot multiply matrices of bfloat16."""


def packed_tokens(
    lengths: list[int], sizes: tuple[int, int], dtype: torch.dtype, *, biased: bool
) -> dispatch.Packed:
    n = sum(lengths)
    places = torch.randint(0, PLACES, (n,), dtype=torch.int32)
    keys, values = (torch.randn(n, size).to(dtype) for size in sizes)
    return dispatch.Packed(keys, values, places, torch.randn(n) if biased else None, tuple(lengths))


def assert_agrees(
    kernels: dispatch.Kernels, query: torch.Tensor, packed: dispatch.Packed, mask: torch.Tensor
) -> None:
    output, weight = kernels.packed_attention(query, packed, mask, 0.5)
    expected, expected_weight = REFERENCE.packed_attention(query, packed, mask, 0.5)
    assert output.dtype == weight.dtype == torch.float32
    bound = BOUND[query.dtype]
    torch.testing.assert_close(output, expected, rtol=bound, atol=bound)
    torch.testing.assert_close(weight, expected_weight, rtol=bound, atol=bound)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.sampled_from([4, 6]), st.sampled_from([3, 8])),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 2.0]),
)
@settings(max_examples=15)
def test_any_lengths(
    kernels: dispatch.Kernels,
    lengths: list[int],
    rows: tuple[int, int, int],
    sizes: tuple[int, int],
    biased: bool,
    seen: float,
) -> None:
    """Empty heads, several sequences, and queries that see nothing, too."""
    packed = packed_tokens(lengths, sizes, torch.float32, biased=biased)
    query = torch.randn(len(lengths), *rows, sizes[0])
    assert_agrees(kernels, query, packed, torch.rand(rows[0], rows[2], PLACES) < seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_many_tokens(kernels: dispatch.Kernels, dtype: torch.dtype) -> None:
    """More tokens than a program takes, and more queries."""
    packed = packed_tokens([700, 40], (16, 16), dtype, biased=True)
    query = torch.randn(2, 1, 9, 2, 16).to(dtype)
    assert_agrees(kernels, query, packed, torch.rand(1, 2, PLACES) < 0.7)


def test_gradients_pass() -> None:
    packed = packed_tokens([5, 3], (4, 4), torch.float32, biased=False)
    query = torch.randn(2, 1, 1, 2, 4, requires_grad=True)
    output, weight = dispatch.packed_attention(query, packed, torch.ones(1, 2, PLACES, dtype=torch.bool), 0.5)
    (output.sum() + weight.sum()).backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
