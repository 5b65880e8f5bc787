from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kvtool.codecs import CodecError, Spec
from kvtool.codecs.quantize.block_float import BlockFloat
from kvtool.codecs.transform.channels import Reorder


def off(stage: BlockFloat, x: torch.Tensor) -> torch.Tensor:
    return stage.decode(stage.encode({"x": x}, Spec.of(x)), Spec.of(x))["x"] - x


def test_the_format_is_what_it_says() -> None:
    x = torch.tensor([[[5.0, -6.2, 0.4, 0.75, 0.1]]])
    stage = BlockFloat(bits=4, block=2)
    y = stage.encode({"x": x}, Spec.of(x))
    assert y["exponents"].tolist() == [[[2, -1, -4]]]
    # Steps of 1, of 1/8 and of 1/64.
    assert (y["codes"].int() - 8).tolist() == [[[5, -6, 3, 6, 6]]]
    assert stage.decode(y, Spec.of(x))["x"].tolist() == [[[5.0, -6.0, 0.375, 0.75, 0.09375]]]


def test_the_error_falls_by_half_with_each_bit() -> None:
    x = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(1))
    errors = [off(BlockFloat(bits=bits), x).norm() for bits in range(3, 9)]
    assert all(1.8 < a / b < 2.3 for a, b in pairwise(errors))


def test_mantissas_that_fit_come_back_exactly() -> None:
    mantissas = torch.randint(-127, 128, (2, 20, 48)).float()
    mantissas[..., ::16] = 127
    for exponent in (-100, -3, 0, 90):
        x = mantissas * 2.0**exponent
        assert not off(BlockFloat(bits=8, block=16), x).any()


def test_channels_in_order_of_their_size_spare_the_small_ones() -> None:
    x = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(1))
    x[:, :, ::8] *= 20
    stage = BlockFloat(bits=4, block=8)
    y = Reorder().encode({"x": x}, Spec.of(x))["x"]
    small = torch.arange(64) % 8 != 0
    assert off(stage, y)[..., 8:].norm() < off(stage, x)[..., small].norm() / 5
    assert off(stage, y).norm() < off(stage, x).norm()


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e-30, 1e-38, 1e-44, 0.0])
def test_the_ends_of_float32_stay_within_the_bound(value: float) -> None:
    x = torch.full((1, 2, 5), value)
    for stage in (BlockFloat(bits=2), BlockFloat(bits=8)):
        assert off(stage, x).abs().max() <= stage.error({"x": x}, Spec.of(x))


def test_a_float16_cache_does_not_overflow_on_the_way_back() -> None:
    x = torch.full((1, 1, 4), -65504.0, dtype=torch.float16)
    assert not off(BlockFloat(), x).any()


def test_any_exponent_decodes_to_finite_entries() -> None:
    x = torch.zeros(1, 256, 1)
    y = {
        "exponents": torch.arange(-128, 128, dtype=torch.int8).view(1, 256, 1),
        "codes": torch.full((1, 256, 1), 255, dtype=torch.uint8),
    }
    decoded = BlockFloat(bits=8).decode(y, Spec.of(x))["x"]
    assert torch.isfinite(decoded).all()
    with pytest.raises(CodecError, match="codes holds code 255, expected below 128"):
        BlockFloat(bits=7).decode(y, Spec.of(x))
