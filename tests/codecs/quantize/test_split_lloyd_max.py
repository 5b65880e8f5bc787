"""Channels in two sets: which they are, what each takes, and what their marks may not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvtool.codecs import Array, CodecError, Spec, recipe
from kvtool.codecs.quantize.lloyd_max import LloydMax
from kvtool.codecs.quantize.split_lloyd_max import SplitLloydMax
from kvtool.codecs.transform.hadamard import Hadamard

LARGE = [1, 4, 7, 9]


@pytest.fixture
def x() -> torch.Tensor:
    """Two heads of 16 channels, of which four are much larger than the others."""
    entries = torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(5))
    entries[..., LARGE] *= 20
    return entries


def test_the_longest_channels_are_marked(x: torch.Tensor) -> None:
    y = SplitLloydMax(share=0.25).encode({"x": x}, Spec.of(x))
    assert y["outlier_channels"].nonzero()[:, 1].tolist() == LARGE * 2
    assert y["codes_outlier"].shape == (2, 300, 4)
    assert y["codes_outlier"].max() == 7
    assert y["codes_other"].shape == (2, 300, 12)
    assert y["codes_other"].max() == 3


def test_sets_of_their_own_err_less_than_all_channels_together(x: torch.Tensor) -> None:
    spec = Spec.of(x)
    split = SplitLloydMax(share=0.25)
    turn, together = Hadamard(), LloydMax(bits=3)
    turned = turn.plan(spec)
    y = together.encode(turn.encode({"x": x}, spec), turned)
    whole = turn.decode(together.decode(y, turned), spec)["x"]
    parted = split.decode(split.encode({"x": x}, spec), spec)["x"]
    others = [channel for channel in range(16) if channel not in LARGE]
    assert (parted - x)[..., others].norm() < 0.2 * (whole - x)[..., others].norm()


def test_marks_of_another_number_of_channels_are_refused(x: torch.Tensor) -> None:
    stage = SplitLloydMax(share=0.25, sketch=True)
    y = dict(stage.encode({"x": x}, Spec.of(x)))
    for marks in (torch.ones_like(y["outlier_channels"]), 2 * y["outlier_channels"]):
        with pytest.raises(CodecError, match="outlier_channels does not mark 4 channels"):
            stage.decode({**y, "outlier_channels": marks}, Spec.of(x))


@pytest.mark.parametrize(("field", "value"), [("bits", 8), ("share", 1.0), ("share", 0.0), ("sketch", 1)])
def test_other_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(CodecError, match=field):
        SplitLloydMax(**{field: value})


@pytest.mark.parametrize("objective", ["mse", "prod"])
@pytest.mark.parametrize("bits", [2, 2.25, 2.5, 3.5, 7.75])
def test_turboquant_takes_the_bits_that_it_is_asked_for(objective: str, bits: float) -> None:
    x = Array((2, 100, 64), torch.float16)
    planned = recipe("turboquant").build(bits=bits, objective=objective).plan(x, x).arrays
    coded = sum(a.nbytes for name, a in planned.items() if "codes" in name or "signs" in name)
    assert coded == 2 * 2 * 100 * 64 * bits / 8
