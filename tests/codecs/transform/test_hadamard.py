from __future__ import annotations

import pytest
import torch

from kvtool.codecs import CodecError, Spec
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.transform.hadamard import Hadamard, rotate, unrotate

SIZES = (1, 2, 3, 8, 33, 64, 80, 96, 192)


@pytest.mark.parametrize("n", SIZES)
def test_a_rotation_is_orthonormal_and_its_own_for_each_seed(n: int) -> None:
    matrix = rotate(torch.eye(n), seed=3)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n), atol=1e-6, rtol=0)
    torch.testing.assert_close(unrotate(matrix, seed=3), torch.eye(n), atol=1e-6, rtol=0)
    if n > 8:
        assert not torch.equal(matrix, rotate(torch.eye(n), seed=4))


def test_a_rotation_is_the_same_for_ever() -> None:
    """Artifacts hold what was rotated by these signs; NumPy promises that they stay."""
    assert rotate(torch.eye(4), seed=0).mul(2).int().tolist() == [
        [-1, -1, -1, -1],
        [1, -1, 1, -1],
        [1, 1, -1, -1],
        [1, -1, -1, 1],
    ]


@pytest.mark.parametrize("n", [size for size in SIZES if size >= 33])
def test_one_large_channel_is_spread_over_many(n: int) -> None:
    x = torch.randn(500, n, generator=torch.Generator().manual_seed(n))
    x[:, n // 2] *= 50
    before, after = (rows.square().mean(0).amax() / rows.square().mean() for rows in (x, rotate(x, 0)))
    assert before > 0.9 * n
    assert after < before / 3


def test_outliers_cost_less_once_they_are_rotated_away() -> None:
    x = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(1))
    x[:, :, 5] += 30
    group = Group(bits=4, group=64, axis="channel")

    def error(y: torch.Tensor) -> torch.Tensor:
        return (group.decode(group.encode({"x": y}, Spec.of(y)), Spec.of(y))["x"] - y).norm()

    rotated = Hadamard().encode({"x": x}, Spec.of(x))["x"]
    assert error(rotated) < error(x) / 1.5


def test_heads_share_one_rotation() -> None:
    x = torch.randn(3, 5, 8)
    y = Hadamard(heads=2).encode({"x": x}, Spec.of(x))["x"]
    torch.testing.assert_close(y[:2, 4].flatten(), rotate(x[:2, 4].flatten(), 0))
    torch.testing.assert_close(y[2], rotate(x[2], 0))


def test_an_error_behind_it_stays_within_the_bound() -> None:
    x = torch.randn(1, 40, 48)
    stage = Hadamard()
    y = dict(stage.encode({"x": x}, Spec.of(x)))
    # The worst there is: every rotated entry is off towards one channel.
    y["x"] = y["x"] + 0.1 * rotate(torch.eye(48)[7], 0).sign()
    off = (stage.decode(y, Spec.of(x))["x"] - x).abs().amax().item()
    bound = stage.error({"x": x}, Spec.of(x), inner=0.1)
    assert 0.5 * bound < off <= bound


def test_a_float16_cache_does_not_overflow_on_the_way_back() -> None:
    x = torch.full((1, 1, 4), 65504.0, dtype=torch.float16)
    y = Hadamard().encode({"x": x}, Spec.of(x))
    decoded = Hadamard().decode({"x": y["x"] * 1.01}, Spec.of(x))["x"]
    assert torch.isfinite(decoded).all()


def test_sums_beyond_float32_are_refused() -> None:
    x = torch.full((1, 1, 4), 3e38)
    with pytest.raises(CodecError, match="too large"):
        Hadamard().encode({"x": x}, Spec.of(x))
