"""Matrices of a calibration in few bits: how far they are rounded, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtool.codecs import CodecError
from kvtool.codecs.calibration import Calibration
from kvtool.codecs.klt import compact, eight_bits
from kvtool.codecs.klt.weights import compact_weights, whole_weights


def holding(**tensors: Tensor) -> Calibration:
    return Calibration("klt", {}, {f"a.{name}": tensor for name, tensor in tensors.items()})


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_rows_are_rounded_to_their_steps() -> None:
    matrix = normal(5, 2001) * torch.logspace(-3, 3, 5)[:, None]
    steps = torch.tensor([1e-4, 1e-2, 1.0, 1e-2, 1e-9])
    coded = compact.compact_rows(matrix, steps)
    back = compact.whole_rows(holding(**coded), "a", 5, 2001)
    error = (back - matrix).abs().amax(1)
    assert (error[:4] <= 0.601 * steps[:4]).all()
    # 16 bits do not hold more steps than this.
    assert error[4] <= matrix[4].abs().amax() / compact.LARGEST
    nothing = compact.compact_rows(torch.zeros(0, 7), torch.zeros(0))
    assert compact.whole_rows(holding(**nothing), "a", 0, 7).shape == (0, 7)


def test_coarse_rows_take_few_bits() -> None:
    matrix = normal(64, 4096)
    sizes = [len(compact.compact_rows(matrix, torch.full((64,), step))["codes"]) for step in (0.01, 0.5, 3.0)]
    # A normal distribution's entropy in steps of 0.01, 0.5 and 3 is 8.7, 3.0 and about 0.3 bits.
    bits = [8 * size / matrix.numel() for size in sizes]
    assert bits[0] < 9.1
    assert bits[1] < 3.2
    assert bits[2] < 0.6


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"codes": torch.zeros(0, dtype=torch.uint8)}, "0 bytes cannot hold 10005 codes"),
        ({"codes": torch.zeros(99, dtype=torch.uint8)}, "a: "),
        ({"step": torch.ones(4)}, "a.step"),
        ({"scales": torch.zeros(2001, dtype=torch.uint8)}, "a.scales"),
        ({"codes": torch.zeros(8000, dtype=torch.int8)}, "a.codes"),
    ],
)
def test_what_is_no_matrix_is_refused(change: dict[str, Tensor], error: str) -> None:
    coded = compact.compact_rows(normal(5, 2001), torch.full((5,), 0.1))
    with pytest.raises(CodecError, match=error):
        compact.whole_rows(holding(**coded | change), "a", 5, 2001)


def test_weights_cost_errors_as_the_sensitivity_does() -> None:
    factor = normal(2, 8, 5) * torch.logspace(-1, 1, 8)[:, None]
    matrices = factor @ factor.mT + 0.1 * torch.diag_embed((factor**2).sum(2))
    weights = whole_weights(holding(**compact_weights(matrices)), "a", 2, 8)
    scale = matrices.diagonal(dim1=1, dim2=2).sqrt()
    relative = (weights.sensitivity - matrices) / (scale[:, :, None] * scale[:, None])
    assert relative.abs().amax() < 0.04
    rows = normal(3, 16)
    by_layer = rows.view(3, 2, 8)
    expected = torch.einsum("nlc,lcd,nld->n", by_layer, weights.sensitivity, by_layer)
    torch.testing.assert_close(weights.apply(rows).square().sum(1), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(weights.undo(weights.apply(rows)), rows, rtol=1e-3, atol=1e-4)
    flat = compact_weights(matrices)
    flat["diagonal"][1, 3] = 0
    with pytest.raises(CodecError, match="diagonal of a root is not positive"):
        whole_weights(holding(**flat), "a", 2, 8)


def test_tables_have_eight_bits() -> None:
    table = normal(300, 4)
    held = holding(**eight_bits.compact_rows(table))
    rows = torch.tensor([3, 299, 3, 300, 10_000])
    some = eight_bits.some_rows(held, "a", (300, 4), rows)
    assert torch.equal(some[0], some[2])
    assert not some[3:].any()
    torch.testing.assert_close(some[:2], table[rows[:2]], rtol=0, atol=0.02)
    assert torch.equal(eight_bits.whole_rows(held, "a", 300, 4)[rows[:2]], some[:2])
