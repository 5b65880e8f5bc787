"""Each head keeps the channels that its queries look at."""

from __future__ import annotations

import pytest
import torch

from kvtool.codecs import CodecError, LayerKV, Pipeline, decode, encode
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.recipe_registry import recipe
from kvtool.codecs.spec import Place, Spec
from kvtool.codecs.transform.channels import KeepChannels
from tests.codecs.prune.scored import scored
from tests.codecs.prune.test_pruned import made_kv

HEADS, TOKENS, CHANNELS = 2, 20, 10


def naive(layer: LayerKV, queries: torch.Tensor, drop: float, recent: int) -> torch.Tensor:
    """Keys with zeros in the channels that matter least, head by head."""
    keys = layer.keys.clone()
    n, group = int(keys.shape[2] * drop), len(queries) // len(keys)
    for head in range(len(keys)):
        norms = [
            sum(float(q[:, d].square().mean()) for q in queries[head * group : (head + 1) * group])
            * float(keys[head, :, d].square().mean())
            for d in range(keys.shape[2])
        ]
        for channel in sorted(range(len(norms)), key=norms.__getitem__)[:n]:
            keys[head, : keys.shape[1] - recent, channel] = 0
    return keys


@pytest.mark.parametrize(("drop", "recent"), [(0.4, 3), (0.75, 0), (0.0, 5), (0.5, 50)])
def test_the_channels_that_matter_least_are_zero_but_for_recent_tokens(drop: float, recent: int) -> None:
    made = scored(TOKENS, HEADS, channels=CHANNELS)
    x = made.layer.keys.half().float()
    stage, spec = KeepChannels(drop, recent), Spec.of(x)
    encoded = stage.encode({"x": x, **made.inputs}, spec)
    assert encoded["x"].shape == (HEADS, TOKENS, CHANNELS - int(CHANNELS * drop))
    decoded = stage.decode({name: encoded[name] for name in stage.plan(spec).arrays}, spec)["x"]
    layer = LayerKV(x, x, made.layer.positions)
    expected = naive(layer, made.inputs["window_queries"], drop, min(recent, TOKENS))
    assert torch.equal(decoded, expected)


def test_channels_that_are_none_are_refused() -> None:
    made = scored(TOKENS, HEADS, channels=CHANNELS)
    stage, spec = KeepChannels(0.4, 0), Spec.of(made.layer.keys)
    encoded = stage.encode({"x": made.layer.keys, **made.inputs}, spec)
    twice = encoded["channels"].clone()
    twice[0, 1] = twice[0, 0]
    for wrong in (twice, encoded["channels"] + CHANNELS, encoded["channels"].flip(1)):
        with pytest.raises(CodecError, match="channels are not 6 ascending ones of 10 in each head"):
            stage.decode({"x": encoded["x"], "channels": wrong}, spec)


def test_packed_heads_are_refused() -> None:
    spec = Spec.of(torch.randn(1, 9, 4), Place(packed=True))
    with pytest.raises(CodecError, match="heads=tokens"):
        KeepChannels().plan(spec)


@pytest.mark.parametrize("name", ["think+kivi", "think+lossless", "kvzip+think", "kvzip+think+kivi"])
def test_what_is_narrow_is_coded_further(name: str) -> None:
    kv = made_kv()
    made = [scored(40, channels=8, seed=seed).inputs for seed in range(3)]
    options = {"keep": 0.5, "heads": "tokens"} if name.startswith("kvzip") else {}
    pipeline = recipe(name).build(drop=0.5, wide=0, **options)
    blob = encode(kv, pipeline, inputs={need: [some[need] for some in made] for need in pipeline.needs})
    plain = encode(kv, Pipeline())
    assert blob.nbytes < plain.nbytes
    for layer in decode(blob).layers:
        assert ((layer.keys == 0).all(1).sum(1) == 4).all()


def test_layers_that_are_coded_together_do_not_go_with_it() -> None:
    with pytest.raises(CodecError, match=r"think\+minicache.*codes layer by layer"):
        recipe("think+minicache").build()
    with pytest.raises(CodecError, match="expected one that"):
        recipe("think+think")
    assert Pipeline(keys=(KeepChannels(), Pack())).needs == {"window_queries"}
