"""Stages that say so decode where their payload is, to what they decode to on the CPU."""

from __future__ import annotations

import pytest
import torch

from kvtool.codecs import KV, LayerKV, Rope, decode, encode
from kvtool.codecs.klt import products
from kvtool.codecs.stage import Stage
from tests.codecs.elsewhere import back, elsewhere
from tests.codecs.test_conformance import decode_stage, examples, inputs, needed, own

FOLLOWING = [stage for stage in examples() if stage.on_any_device]


@pytest.mark.parametrize("stage", FOLLOWING, ids=repr)
def test_a_stage_decodes_on_its_payloads_device(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer bits, where a device is fast at that, are another matter.
    monkeypatch.setattr(products, "FROM", 1 << 62)
    for spec, payload in inputs(stage)[::5]:
        coded = stage.encode(payload, spec)
        expected = decode_stage(stage, coded, spec)
        extra = needed(stage.needs & {"positions", "token_ids"}, spec.arrays["x"].shape)
        with elsewhere(monkeypatch) as device:
            there = {name: tensor.to(device) for name, tensor in coded.items()}
            decoded = {name: back(tensor) for name, tensor in stage.decode({**there, **extra}, spec).items()}
        for name, tensor in own(expected, spec).items():
            torch.testing.assert_close(decoded[name], tensor, rtol=1e-5, atol=1e-5, msg=f"{spec}: {name}")


@pytest.mark.parametrize("recipe", ["kivi", "cachegen", "lossless", "rotatekv"])
def test_a_segment_is_decoded_onto_a_device(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, 80, 64, generator=generator)
    layers = tuple(LayerKV(x[n], x[n + 2], torch.arange(80)) for n in range(2))
    rope = {"rotations": [Rope((1.0, 0.1)).to_json()], "rotation_of_layer": [0, 0]}
    blob = encode(KV(layers, torch.arange(80), rope), recipe)
    expected = decode(blob)
    with elsewhere(monkeypatch) as device:
        decoded = [(back(x.keys), back(x.values), x.positions) for x in decode(blob, device).layers]
    for (keys, values, positions), layer in zip(decoded, expected.layers, strict=True):
        assert torch.equal(positions, layer.positions)
        torch.testing.assert_close(keys, layer.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values, layer.values, rtol=1e-5, atol=1e-5)
