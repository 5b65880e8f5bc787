"""The estimate of what fitting takes, beside peaks that ``python -m benchmarks large`` and its like measured."""

from __future__ import annotations

import pytest
import torch

from kvtool.codecs import Geometry, LayerGeometry
from kvtool.codecs.klt.memory import fit_nbytes


def _geometry(layers: int, heads: int, channels: int) -> Geometry:
    sizes = (heads, channels)
    return Geometry(torch.float16, 1024, (LayerGeometry(1024, sizes, sizes),) * layers)


@pytest.mark.parametrize(
    ("layers", "heads", "channels", "tokens", "measured"),
    [(30, 3, 64, 4096, 1.11e9), (12, 8, 128, 4096, 2.6e9), (32, 8, 128, 8192, 8.6e9)],
)
def test_the_estimate_is_near_what_was_measured(
    layers: int, heads: int, channels: int, tokens: int, measured: float
) -> None:
    assert fit_nbytes(_geometry(layers, heads, channels), tokens) == pytest.approx(measured, rel=0.2)


def test_no_more_than_linear_in_width() -> None:
    one, two = (fit_nbytes(_geometry(layers, 8, 128), 8192) for layers in (32, 64))
    # The rank grows with the width.
    assert one < two < 4 * one
    # More samples take memory of their own, and no more beside.
    assert fit_nbytes(_geometry(64, 8, 128), 1 << 20) == two
