"""The recipe kvquant: what its calibration says of channels, and when it needs one."""

from __future__ import annotations

import pytest
import torch

from kvtool.codecs import KV, Calibration, CodecError, LayerKV, NeedsCalibration, Rope, Sample, recipe
from kvtool.codecs.calibrate.kvquant import fit
from kvtool.codecs.quantize.codebook import Codebook
from kvtool.codecs.quantize.weighted_codebook import WeightedCodebook

SLOPES = torch.tensor([1.0, 2.0, 0.5, 0.0]).view(2, 1, 2)
"""Gradients of 2 heads of 2 channels."""


def sample(tokens: int = 6, layers: int = 2, start: int = 0, heads: int = 2) -> Sample:
    positions = torch.arange(start, start + tokens)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(heads, tokens, 2, generator=generator)
    slopes = SLOPES.repeat(heads // 2, tokens, 1)
    if not start:
        slopes[:, 0] = 100  # The first token is kept whole.
    rope = {"rotations": [Rope(()).to_json()], "rotation_of_layer": [0] * layers}
    kv = KV((LayerKV(x, x, positions),) * layers, torch.arange(tokens), rope)
    return Sample(kv, (LayerKV(slopes, 3 * slopes, positions),) * layers)


def test_channels_weigh_what_their_squared_gradients_say() -> None:
    calibration = fit([sample(), sample(start=7), Sample(sample().kv)])
    assert calibration.method == "kvquant"
    assert calibration.facts == {"tokens": 5 + 6}
    assert sorted(calibration.tensors) == [
        f"000{layer}.{side}" for layer in (0, 1) for side in ("keys", "values")
    ]
    for fisher in calibration.tensors.values():
        assert torch.allclose(fisher, torch.tensor([1, 4, 0.25, 0]) / (5.25 / 4))


def test_samples_that_say_nothing_are_refused() -> None:
    with pytest.raises(CodecError, match="no sample has tokens with gradients after the first 1"):
        fit([sample(tokens=1), Sample(sample().kv)])
    with pytest.raises(CodecError, match="several models"):
        fit([sample(), sample(heads=4)])


def test_only_the_weighted_levels_need_a_calibration() -> None:
    kvquant, calibration = recipe("kvquant"), fit([sample()])
    pipeline = kvquant.build(calibration)
    assert [type(pipeline.keys[-2]), type(pipeline.values[-2])] == [WeightedCodebook] * 2
    assert pipeline.calibrations == (calibration,)
    plain = kvquant.build(weights="none")
    assert [type(plain.keys[-2]), type(plain.values[-2])] == [Codebook] * 2
    assert kvquant.nominal_bits(weights="none") == pytest.approx(3.4, abs=0.1)
    with pytest.raises(NeedsCalibration, match="kvquant"):
        kvquant.build(weights="fisher")
    with pytest.raises(CodecError, match="method 'kvquant', expected none"):
        kvquant.build(calibration, weights="none")
    with pytest.raises(CodecError, match="expected one of 'kvquant'"):
        kvquant.build(Calibration("klt", {}, {}))
