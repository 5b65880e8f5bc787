from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch

from kvtool.codecs import (
    KV,
    Array,
    CodecError,
    Contents,
    LayerKV,
    NeedsError,
    Pipeline,
    Spec,
    Stage,
    decode,
    encode,
)
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.entropy.planes import Planes
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.quantize.group_v1 import GroupV1
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage import Kind
from kvtool.codecs.transform.window import Window

X = Array((2, 10, 8), torch.float32)


@dataclass(frozen=True)
class Negate(Stage):
    name: ClassVar[str] = "negate"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    def plan(self, spec: Spec) -> Spec:
        return spec

    def encode(self, x: Payload, spec: Spec) -> Payload:
        return {**{name: x[name] for name in spec.arrays}, "x": -x["x"]}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return {**{name: y[name] for name in spec.arrays}, "x": -y["x"]}


@dataclass(frozen=True)
class AddQueries(Negate):
    """What no stage does: it wants to be told something, and the position of each token."""

    name: ClassVar[str] = "add queries"
    needs: ClassVar[frozenset[str]] = frozenset({"queries", "positions"})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        return {"x": x["x"] + x["queries"] + x["positions"][..., None, :, None]}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return {"x": y["x"] - y["positions"][..., None, :, None]}


def layer(tokens: int = 10) -> LayerKV:
    return LayerKV(torch.randn(2, tokens, 8), torch.randn(2, tokens, 8), torch.arange(tokens))


@pytest.mark.parametrize(
    ("stages", "culprit"),
    [
        ((Pack(), Group()), "quantize stage 'group' is out of place after entropy stage 'pack'"),
        ((Group(), Group(), Pack()), "quantize stage 'group' is out of place after quantize"),
        ((Group(), Negate(), Pack()), "transform stage 'negate' is out of place after quantize"),
        ((Planes(), Planes()), "entropy stage 'planes' is out of place after entropy"),
        ((Group(),), "ends in quantize stage 'group', expected entropy"),
    ],
)
def test_order_is_checked_when_planned(stages: tuple[Stage, ...], culprit: str) -> None:
    with pytest.raises(CodecError, match=f"values: .*{culprit}"):
        Pipeline(values=stages).plan(X, X)


def test_transforms_may_follow_one_another_and_exact_ones_are_exact() -> None:
    pipeline = Pipeline(keys=(Negate(), Negate(), Planes()))
    given = layer()
    (back,) = pipeline.decode(pipeline.encode([given]), X, X, [given.positions])
    assert torch.equal(back.keys, given.keys)
    assert pipeline.error([given]) == (0.0, 0.0)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_what_a_stage_needs_is_given_or_refused_before_anything_runs(layers: int) -> None:
    pipeline = Pipeline(keys=(AddQueries(), Planes()), layers=layers)
    assert pipeline.needs == {"queries"}
    kv = KV((layer(), layer(), layer()), torch.arange(10))
    with pytest.raises(NeedsError, match="needs queries") as refused:
        encode(kv, pipeline)
    assert refused.value.needs == ["queries"]
    given = {"queries": [torch.full((2, 10, 8), float(i)) for i in range(3)]}
    contents, stored = Contents.of(kv, pipeline), encode(kv, pipeline, inputs=given).tensors
    for group in contents.groups:
        tensors = {name: stored[name] for name in contents.arrays(group)}
        for i, back in zip(group, contents.decode(group, tensors), strict=True):
            assert torch.allclose(back.keys, kv.layers[i].keys + i, atol=1e-5)


def test_layers_are_grouped_with_their_equals() -> None:
    wide = LayerKV(torch.randn(2, 10, 4), torch.randn(2, 10, 4), torch.arange(10))
    kv = KV((layer(), layer(), layer(), wide, wide, layer()), torch.arange(10))
    pipeline = Pipeline((Planes(),), (Planes(),), layers=2)
    assert Pipeline.from_config(json.loads(json.dumps(pipeline.to_config()))) == pipeline
    blob = encode(kv, pipeline)
    names = ["0000-0001", "0002-0002", "0003-0004", "0005-0005"]
    assert list(blob.tensors)[1::2] == [f"layers.{name}.keys" for name in names]
    for given, back in zip(kv.layers, decode(blob).layers, strict=True):
        assert torch.equal(given.keys, back.keys)
        assert torch.equal(given.values, back.values)


def test_all_neighbours_of_equal_sizes_make_one_group() -> None:
    wide = LayerKV(torch.randn(2, 10, 4), torch.randn(2, 10, 4), torch.arange(10))
    kv = KV((layer(), layer(), layer(), wide, layer()), torch.arange(10))
    pipeline = Pipeline((Planes(),), (Planes(),), layers=0)
    config = json.loads(json.dumps(pipeline.to_config()))
    assert config["layers"] == 0
    assert Pipeline.from_config(config) == pipeline
    contents, blob = Contents.of(kv, pipeline), encode(kv, pipeline)
    assert [contents.place(group).count for group in contents.groups] == [3, 1, 1]
    names = ["0000-0002", "0003-0003", "0004-0004"]
    assert list(blob.tensors)[1::2] == [f"layers.{name}.keys" for name in names]
    for given, back in zip(kv.layers, decode(blob).layers, strict=True):
        assert torch.equal(back.keys, given.keys)
        assert torch.equal(back.values, given.values)


@pytest.mark.parametrize("layers", [1, -1, True, 2.0, "0", None])
def test_a_configuration_of_layers_that_nobody_writes_is_refused(layers: object) -> None:
    config: Any = {**Pipeline(layers=2).to_config(), "layers": layers}
    with pytest.raises(CodecError, match=r"layers is .*, expected an integer from 2, or 0 for all"):
        Pipeline.from_config(config)


def test_names_of_stored_tensors() -> None:
    plan = Pipeline(keys=(Window(recent=4), Group(group=4), Pack())).plan(X, X)
    assert list(plan.arrays) == ["keys.recent", "keys.codes", "keys.scale", "keys.zero", "values"]
    assert plan.arrays["keys.codes"].shape == (2 * 6 * 8 // 4,)
    assert plan.nbytes == 24 + 2 * (2 * 2 * 8 * 2) + 2 * 4 * 8 * 2 + X.nbytes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_with_layer_and_token(value: float) -> None:
    layers = [layer(), layer()]
    layers[1].values[1, 7, 3] = value
    with pytest.raises(CodecError, match=r"layer 1: values: .* at token 7 \(head 1, channel 3\)"):
        encode(KV(tuple(layers), torch.arange(10)), Pipeline())


@pytest.mark.parametrize(("axis", "big"), [("token", 70000.0), ("channel", -1e30)])
def test_what_float16_cannot_hold_is_refused_with_its_value(
    axis: Literal["token", "channel"], big: float
) -> None:
    for token in (0, 9):
        given = layer()
        given.keys[0, token, 0] = big
        with pytest.raises(CodecError, match=r"layer 0: keys: .* is (-1e\+30|70000), beyond float16's 65504"):
            Pipeline(keys=(Window(recent=2), Group(axis=axis), Pack())).encode([given])


def test_groups_of_one_value_and_of_tiny_range_are_kept() -> None:
    given = torch.full((1, 64, 4), 1.5)
    given[:, :, 1] = 1e-9
    given[0, 5, 2] = 1.5 + 2e-8
    stage, spec = Group(), Spec({"x": Array((1, 64, 4), torch.float32)})
    back = stage.decode(stage.encode({"x": given}, spec), spec)["x"]
    assert (back - given).abs().max() < 1e-7


def test_a_16_bit_window_keeps_its_bits() -> None:
    given = torch.randn(1, 8, 4).to(torch.bfloat16) * 1e30
    stage, spec = Window(recent=8), Spec({"x": Array((1, 8, 4), torch.bfloat16)})
    assert torch.equal(stage.decode(stage.encode({"x": given}, spec), spec)["x"], given)


def test_layers_of_several_lengths_and_sizes_keep_their_positions() -> None:
    layers = (layer(10), LayerKV(torch.randn(1, 4, 6), torch.randn(1, 4, 2), torch.arange(6, 10)))
    kv = KV(layers, torch.arange(10))
    blob = encode(kv, "lossless")
    assert blob.metadata["positions"] is None
    assert list(blob.tensors)[:2] == ["token_ids", "layers.0000.positions"]
    for given, back in zip(layers, decode(blob).layers, strict=True):
        assert torch.equal(given.keys, back.keys)
        assert torch.equal(given.positions, back.positions)


def test_sizes_that_metadata_claims_are_bounded() -> None:
    blob = encode(KV((layer(),), torch.arange(10)), Pipeline())
    for field, value in [
        ("n_tokens", 11),
        ("n_tokens", -1),
        ("n_tokens", True),
        ("dtype", "int8"),
        ("layers", []),
        ("layers", [{"count": 10**12, "tokens": 10, "keys": [2, 8], "values": [2, 8]}]),
        ("layers", [{"count": 1, "tokens": 11, "keys": [2, 8], "values": [2, 8]}]),
        ("layers", [{"count": 1, "tokens": 10, "keys": [2**31 - 1, 2**31 - 1], "values": [2, 8]}]),
        ("layers", [{"count": 1, "tokens": 10, "keys": [2], "values": [2, 8]}]),
        # No stored byte stands for these, but loops over heads do not ask for one.
        ("layers", [{"count": 1, "tokens": 0, "keys": [2**20, 8], "values": [2, 8]}]),
        ("layers", [{"count": 1, "tokens": 0, "keys": [0, 2**30], "values": [2, 8]}]),
    ]:
        geometry: Any = {**blob.metadata["geometry"], field: value}  # type: ignore[dict-item]
        with pytest.raises(CodecError):
            decode(type(blob)(blob.tensors, {**blob.metadata, "geometry": geometry}))
    broken: list[tuple[str, Any]] = [
        ("positions", {"start": -1}),
        ("positions", 3),
        ("rope", []),
        ("pipeline", {}),
    ]
    for field, wrong in broken:
        with pytest.raises(CodecError, match=field):
            decode(type(blob)(blob.tensors, {**blob.metadata, field: wrong}))


def test_side_tensors_are_not_overwritten() -> None:
    with pytest.raises(CodecError, match="group"):
        Group().plan(Spec({"x": X, "scale": X}))
    with pytest.raises(CodecError, match="group"):
        Group().plan(Spec({"factors": X}))
    with pytest.raises(CodecError, match="none called recent"):
        Pipeline(keys=(Window(recent=3), GroupV1(recent=0), Pack())).plan(X, X)


def test_a_pipeline_is_no_longer_than_anyone_needs() -> None:
    config = {"keys": [Window().to_config()] * 100_000, "values": []}
    with pytest.raises(CodecError, match="at most 64 stages"):
        Pipeline.from_config(config)
    with pytest.raises(CodecError, match="at most 64"):
        Pipeline(values=(*(Window(),) * 64, Pack())).plan(X, X)


@pytest.mark.parametrize("recipe", ["cachegen", "cachegen-lmcache", "kivi", "lossless"])
def test_a_range_of_tokens_is_the_same_as_in_the_whole(recipe: str) -> None:
    kv = KV((layer(3000),), torch.arange(3000))
    blob = encode(kv, recipe, sinks=4, recent=30) if recipe != "lossless" else encode(kv, recipe)
    (whole,), contents = decode(blob).layers, Contents.from_metadata(blob.metadata)
    tensors = {name: blob.tensors[name] for name in contents.arrays(range(1))}
    for tokens in (range(0), range(2), range(1000, 1100), range(1500, 3000), range(2990, 3000), range(3000)):
        (some,) = contents.decode(range(1), tensors, tokens)
        assert torch.equal(some.keys, whole.keys[:, tokens.start : tokens.stop])
        assert torch.equal(some.values, whole.values[:, tokens.start : tokens.stop])
        assert some.positions.tolist() == list(tokens)
    for tokens in (range(-1, 3), range(10, 3001), range(0, 10, 2)):
        with pytest.raises(CodecError, match="tokens is range"):
            contents.decode(range(1), tensors, tokens)
