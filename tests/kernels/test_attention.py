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
    kernels: dispatch.Kernels, query: torch.Tensor, packed: dispatch.Packed, n_dense: int, seen: float
) -> None:
    """``seen`` is the share of tokens that a query sees; it sees the last one in any case."""
    heads, batch, _, n_queries, _ = query.shape
    key, value = (
        torch.randn(heads, batch, n_dense, states.shape[1]).to(query)
        for states in (packed.keys, packed.values)
    )
    mask = torch.rand(batch, n_queries, PLACES + n_dense) < seen
    mask[..., -1 if n_dense else slice(None)] = True
    output = kernels.packed_attention(query, packed, key, value, mask, 0.5)
    expected = REFERENCE.packed_attention(query, packed, key, value, mask, 0.5)
    assert output.dtype == query.dtype
    torch.testing.assert_close(output, expected, rtol=BOUND[query.dtype], atol=BOUND[query.dtype])


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.sampled_from([4, 6]), st.sampled_from([3, 8])),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 2.0]),
)
@settings(max_examples=15)
def test_any_lengths(
    kernels: dispatch.Kernels,
    lengths: list[int],
    rows: tuple[int, int, int],
    sizes: tuple[int, int],
    n_dense: int,
    biased: bool,
    seen: float,
) -> None:
    """Empty heads, several sequences, and queries that see nothing of a document, too."""
    if not n_dense:
        lengths = [length + 1 for length in lengths]
    packed = packed_tokens(lengths, sizes, torch.float32, biased=biased)
    assert_agrees(kernels, torch.randn(len(lengths), *rows, sizes[0]), packed, n_dense, seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_many_tokens(kernels: dispatch.Kernels, dtype: torch.dtype) -> None:
    """More tokens than a program takes, and more queries."""
    packed = packed_tokens([700, 40], (16, 16), dtype, biased=True)
    assert_agrees(kernels, torch.randn(2, 1, 9, 2, 16).to(dtype), packed, 3, 0.7)


def test_gradients_pass() -> None:
    packed = packed_tokens([5, 3], (4, 4), torch.float32, biased=False)
    query = torch.randn(2, 1, 1, 2, 4, requires_grad=True)
    dense, mask = torch.randn(2, 1, 3, 4), torch.rand(1, 2, PLACES + 3) < 0.8
    mask[..., -1] = True
    dispatch.packed_attention(query, packed, dense, dense, mask, 0.5).sum().backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
