from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvtool.codecs import Array, CodecError, LayerKV, Spec, recipe
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.quantize.residual import LowRankResidual


def loss(stage: Group, x: Tensor) -> float:
    spec = Spec.of(x)
    return (stage.decode(stage.encode({"x": x}, spec), spec)["x"] - x).norm().item()


@pytest.fixture
def x() -> Tensor:
    """Heads that are large in a few directions, as caches are."""
    generator = torch.Generator().manual_seed(1)
    noise, low = torch.randn(2, 200, 32, generator=generator), torch.randn(2, 200, 3, generator=generator)
    return noise + 4 * low @ torch.randn(2, 3, 32, generator=generator)


def test_factors_take_away_some_of_what_quantization_loses(x: Tensor) -> None:
    losses = [loss(LowRankResidual(bits=2, rank=rank), x) for rank in (1, 4, 16)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < loss(Group(bits=2), x)


def test_full_rank_leaves_what_float16_rounds_away(x: Tensor) -> None:
    assert loss(LowRankResidual(bits=1, rank=32, iterations=1), x) < 1e-3 * x.norm().item()


def test_iterations_come_close_to_the_singular_vectors(x: Tensor) -> None:
    spec = Spec.of(x)
    backbone = Group(bits=2)
    lost = x - backbone.decode(backbone.encode({"x": x}, spec), spec)["x"]
    best = torch.linalg.svdvals(lost)[:, 4:].norm().item()
    losses = [loss(LowRankResidual(rank=4, iterations=n), x) for n in (1, 3, 30)]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 1.05 * best
    assert losses[2] == pytest.approx(best, rel=2e-3)


def test_fewer_bits_are_worse(x: Tensor) -> None:
    losses = [loss(LowRankResidual(bits=bits), x) for bits in range(1, 9)]
    assert losses == sorted(losses, reverse=True)


def test_what_is_exact_without_factors_stays_exact() -> None:
    assert loss(LowRankResidual(), torch.full((2, 9, 4), -0.5)) == 0.0


def test_a_rank_is_refused_by_name() -> None:
    with pytest.raises(CodecError, match="quantize stage 'low-rank-residual': rank is 0"):
        LowRankResidual(rank=0)


def test_each_of_gears_parts_makes_it_better(x: Tensor) -> None:
    x = x.clone()
    x[:, ::50, 7] = 60.0
    layer = LayerKV(x, x, torch.arange(200))
    array = Array(tuple(x.shape), x.dtype)

    def lost(name: str, **parameters: Any) -> float:
        pipeline = recipe(name).build(group=64, recent=0, **parameters)
        (back,) = pipeline.decode(pipeline.encode([layer]), array, array, [layer.positions])
        return (back.keys - x).norm().item()

    assert lost("gear") < lost("gear", outliers=0) < lost("kivi")
