"""Clipped groups: finer steps for most entries, at the price of those at the ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvtool.codecs import CodecError, Pipeline, Spec, recipe
from kvtool.codecs.quantize.clipped import ClippedGroup
from kvtool.codecs.quantize.group import Group


def decoded(stage: Group, x: torch.Tensor) -> torch.Tensor:
    return stage.decode(stage.encode({"x": x}, Spec.of(x)), Spec.of(x))["x"]


def test_both_ends_of_each_group_are_scaled_and_what_lies_beyond_is_clipped() -> None:
    x = torch.tensor([-10.0, -1.0, 1.0, 5.0, -2.0, 0.0, 1.0, 2.0]).view(1, 1, 8)
    stage = ClippedGroup(bits=8, group=4, axis="channel", clip=0.5)
    expected = torch.tensor([-5.0, -1.0, 1.0, 2.5, -1.0, 0.0, 1.0, 1.0]).view(1, 1, 8)
    torch.testing.assert_close(decoded(stage, x), expected, rtol=0, atol=7.5 / 255)


def test_normal_entries_in_2_bits_err_less() -> None:
    x = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(3))
    plain, clipped = (
        (decoded(cls(bits=2, group=64, axis="channel"), x) - x).norm() for cls in (Group, ClippedGroup)
    )
    assert clipped < 0.85 * plain


def test_nothing_is_clipped_at_1() -> None:
    x = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(decoded(ClippedGroup(clip=1.0), x), decoded(Group(), x))


@pytest.mark.parametrize("clip", [0.0, 1.1, -1.0, float("nan")])
def test_other_clips_are_refused(clip: float) -> None:
    with pytest.raises(CodecError, match="clip"):
        ClippedGroup(clip=clip)


@pytest.mark.parametrize(
    ("parameters", "clip"),
    [
        ({}, 0.8),
        ({"bits": 3}, None),
        ({"bits": 4}, None),
        ({"bits": 4, "clip": 0.9}, 0.9),
        ({"clip": 1}, None),
    ],
)
def test_rotatekv_clips_as_its_authors_do_unless_told(parameters: dict[str, Any], clip: float | None) -> None:
    pipeline: Pipeline = recipe("rotatekv").build(**parameters)
    for side in (pipeline.keys, pipeline.values):
        (quantizer,) = (stage for stage in side if isinstance(stage, Group))
        assert getattr(quantizer, "clip", None) == clip
