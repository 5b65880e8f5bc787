"""A calibration is its bytes: the same content is the same digest, and nothing else is read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load

from kvtool.codecs import (
    KV,
    Blob,
    Calibration,
    CodecError,
    Contents,
    LayerKV,
    MissingCalibration,
    NeedsCalibration,
    Pipeline,
    Recipe,
    Sample,
    decode,
    encode,
    stages,
)
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.format import container
from kvtool.codecs.quantize.group import Group

GOLDEN = Path(__file__).parents[2] / "golden" / "calibrations"
DIGEST = "ddccf796f6c45c1b90eff6101f46adb4c3eab50dedc613254625018406af2d91"


def golden() -> Calibration:
    tensors = {
        "basis": torch.arange(24, dtype=torch.float32).reshape(4, 6) / 16,
        "a.scale": torch.tensor([0.5, -0.25, 3.0], dtype=torch.bfloat16),
        "a.table": torch.tensor([1, 2, 250], dtype=torch.uint8),
        "empty": torch.empty(0, 7),
    }
    facts: dict[str, Any] = {
        "rank": 6,
        "steps": [0.5, 0.125],
        "groups": {"0": [0, 4], "4": [4, 6]},
        "name": "é",
    }
    return Calibration("test", facts, tensors).made(model="0" * 64, source={"documents": ["docs/a.md"]})


def same(a: Calibration, b: Calibration) -> bool:
    return (a.method, a.facts, list(a.tensors)) == (b.method, b.facts, list(b.tensors)) and all(
        a.tensors[name].dtype == b.tensors[name].dtype and torch.equal(a.tensors[name], b.tensors[name])
        for name in a.tensors
    )


def test_it_comes_back() -> None:
    there = golden()
    data = there.to_bytes()
    back = Calibration.from_bytes(data)
    assert same(there, back)
    assert there == back
    assert hash(there) == hash(back)
    assert there.nbytes == len(data)
    assert there.model == "0" * 64
    assert {name: tensor.tolist() for name, tensor in load(data).items() if "pad." not in name} == {
        name: tensor.tolist() for name, tensor in there.tensors.items()
    }


def test_a_calibration_of_format_1_has_the_bytes_and_the_digest_that_it_had() -> None:
    path = GOLDEN / f"{DIGEST}.safetensors"
    assert golden().digest == DIGEST
    assert path.read_bytes() == golden().to_bytes()
    assert same(Calibration.from_bytes(path.read_bytes()), golden())


def test_content_alone_decides() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(1)}
    facts: dict[str, Any] = {"x": (1, 2), "y": {1: 0.5}}
    one = Calibration("m", facts, tensors)
    other = Calibration(
        "m",
        {"y": {"1": 0.5}, "x": [1, 2]},
        {"b": torch.zeros(1), "a": torch.ones(3, 2, requires_grad=True).mT},
    )
    assert one == other
    assert one.facts == {"x": [1, 2], "y": {"1": 0.5}}
    assert list(other.tensors) == ["a", "b"]
    assert not other.tensors["a"].requires_grad
    different = [
        Calibration("n", one.facts, tensors),
        Calibration("m", {**one.facts, "x": [1, 3]}, tensors),
        Calibration("m", one.facts, {**tensors, "b": torch.ones(1)}),
        Calibration("m", one.facts, {**tensors, "b": torch.zeros(1).half()}),
        one.made(model="f", source=None),
    ]
    assert len({one, other, *different}) == 6
    assert one != "m"
    assert repr(one) == f"Calibration('m', {one.digest[:12]}…)"


@pytest.mark.parametrize(
    ("method", "facts", "tensors"),
    [
        ("", {}, {}),
        (3, {}, {}),
        ("m\ud800", {}, {}),
        ("m", {"x": float("nan")}, {}),
        ("m", {"x": object()}, {}),
        ("m", [1], {}),
        ("m", {}, {"x": torch.tensor([1.0, float("inf")])}),
        ("m", {}, {"x": torch.ones(2, dtype=torch.complex64)}),
        ("m", {}, {"pad.0": torch.ones(1)}),
        ("m", {}, {"__metadata__": torch.ones(1)}),
    ],
)
def test_what_cannot_be_stored_is_refused(
    method: object, facts: object, tensors: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(CodecError):
        Calibration(method, facts, tensors)  # type: ignore[arg-type]


def test_a_bit_flipped_anywhere_is_refused_or_another_calibration() -> None:
    data = bytearray(golden().to_bytes())
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        try:
            found = Calibration.from_bytes(bytes(data))
        except CodecError:
            pass
        else:
            assert found.digest != golden().digest
            assert found.to_bytes() == bytes(data)
        data[at] ^= 1 << at % 8


def file(about: object, **tensors: torch.Tensor) -> bytes:
    return container.to_bytes(tensors, {"kvtool": json.dumps(about, sort_keys=True, separators=(",", ":"))})


def about(**fields: object) -> dict[str, object]:
    return {"kind": "calibration", "format": 1, "method": "m", "facts": {}, **fields}


def header(text: str, payload: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + payload


HOSTILE = {
    "nothing": b"",
    "a header past the end": (1 << 62).to_bytes(8, "little") + b"{}",
    "not JSON": header("PK"),
    "a list": header("[]"),
    "deep": header("[" * 100_000),
    "no metadata": header("{}"),
    "metadata is a number": header('{"__metadata__":{"kvtool":1}}'),
    "another program's": header('{"__metadata__":{"format":"pt"}}'),
    "an artifact": file({"format": 1, "geometry": {}}),
    "another kind": file(about(kind="artifact")),
    "format 0": file(about(format=0)),
    "format true": file(about(format=True)),
    "no method": file({k: v for k, v in about().items() if k != "method"}),
    "method is a number": file(about(method=1)),
    "facts are a list": file(about(facts=[])),
    "another field": file(about(more=1)),
    "deep facts": header(json.dumps({"__metadata__": {"kvtool": '{"facts":' + "[" * 100_000}})),
    "a surrogate": header(json.dumps({"__metadata__": {"kvtool": json.dumps(about(method="\ud800"))}})),
    "unsorted tensors": file(about(), b=torch.ones(1), a=torch.ones(1)),
    "NaN": file(about(), a=torch.tensor([float("nan")])),
    "more metadata": container.to_bytes({}, {"kvtool": json.dumps(about()), "more": ""}),
    "spaces": container.to_bytes({}, {"kvtool": json.dumps(about(), sort_keys=True)}),
    "cut off": golden().to_bytes()[:-1],
    "something behind it": golden().to_bytes() + b"\0",
}
SHAPES = ("[1e9]", "[-1]", "[true]", '"12"', "null", "[4294967296]", "[0,2147483647,2147483647,2147483647]")


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_kvtool_would_not_have_written_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        Calibration.from_bytes(data)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("shape", SHAPES)
def test_hostile_shapes_are_refused_without_allocation(shape: str) -> None:
    entry = f'{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}'
    about_text = json.dumps(json.dumps(about(), sort_keys=True, separators=(",", ":")))
    with pytest.raises(CodecError):
        Calibration.from_bytes(header(f'{{"__metadata__":{{"kvtool":{about_text}}},"x":{entry}}}', bytes(4)))


def test_a_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(CodecError, match=r"format 2.*upgrade kvtool"):
        Calibration.from_bytes(file(about(format=2)))


# In recipes: the plugin's takes the calibrated means off


def make_kv(tokens: int = 50, seed: int = 0) -> KV:
    generator = torch.Generator().manual_seed(seed)

    def side(channels: int) -> torch.Tensor:
        return torch.randn(2, tokens, channels, generator=generator) + 5

    layers = tuple(LayerKV(side(8), side(6), torch.arange(tokens)) for _ in range(3))
    return KV(layers, torch.arange(tokens))


def conformance() -> ModuleType:
    # Test modules lie in no package that could be imported from.
    spec = importlib.util.spec_from_file_location(
        "conformance", Path(__file__).parents[1] / "test_conformance.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_calibrated_stage_and_recipe_conform(centred: Recipe) -> None:
    laws = conformance()
    for stage in stages()["centred", 1].examples():
        laws.test_stage_round_trip(stage)
        laws.test_stage_config_survives_json(stage)
        laws.test_stage_survives_hostile_bytes(stage)
        assert len({spec.arrays["x"].shape[1] for spec, _ in laws.inputs(stage)}) >= 3
    for name in laws.KVS:
        laws.test_recipe_round_trip(centred, name)
    laws.test_recipe_refuses_tensors_that_are_not_planned(centred)
    laws.test_recipe_is_calibrated_the_same_each_time_and_is_not_built_without(centred)


def test_a_blob_carries_what_it_was_calibrated_with(centred: Recipe) -> None:
    assert centred.fit
    calibration = centred.fit([Sample(make_kv(200, 1))])
    kv = make_kv()
    blob = encode(kv, "centred", calibration=calibration, bits=8)
    assert blob.calibrations == (calibration,)
    assert blob.calibration_nbytes == calibration.nbytes
    assert blob.nbytes == Blob(blob.tensors, blob.metadata).nbytes
    for layer, back in zip(kv.layers, decode(blob).layers, strict=True):
        assert (layer.keys - back.keys).abs().max() < 0.05
    with pytest.raises(MissingCalibration, match=r"'centred': needs calibration .* not here") as caught:
        decode(Blob(blob.tensors, blob.metadata))
    assert caught.value.digest == calibration.digest
    with pytest.raises(MissingCalibration):
        Contents.from_metadata(blob.metadata, {"0" * 64: calibration})
    assert encode(kv, "kivi").calibrations == ()
    assert encode(kv, "kivi").calibration_nbytes == 0


def test_another_calibration_is_another_pipeline(centred: Recipe) -> None:
    assert centred.fit
    one, other = (centred.fit([Sample(make_kv(200, seed))]) for seed in (1, 2))
    pipelines = [centred.build(calibration) for calibration in (one, other)]
    assert pipelines[0] != pipelines[1]
    assert pipelines[0] == centred.build(Calibration.from_bytes(one.to_bytes()))
    assert pipelines[0].to_config() != pipelines[1].to_config()
    mixed = Pipeline(pipelines[0].keys, pipelines[1].values)
    assert mixed.calibrations == (one, other)
    assert Pipeline(pipelines[0].keys, (Group(), Pack())).calibrations == (one,)
    config = json.loads(json.dumps(mixed.to_config()))
    assert Pipeline.from_config(config, {c.digest: c for c in (one, other)}) == mixed


def test_a_recipe_that_needs_a_calibration_says_so(centred: Recipe) -> None:
    calibration = Calibration("another", {}, {})
    parameters: list[dict[str, Any]] = [{}, {"bits": 2}]
    for wrong in parameters:
        with pytest.raises(
            NeedsCalibration, match="'centred': needs a calibration of method 'mean'"
        ) as caught:
            encode(make_kv(), "centred", **wrong)
        assert (caught.value.recipe, caught.value.method) == ("centred", "mean")
    with pytest.raises(CodecError, match="'another', expected one of 'mean'"):
        encode(make_kv(), "centred", calibration=calibration)
    with pytest.raises(CodecError, match=r"'kivi'.*'another', expected none"):
        encode(make_kv(), "kivi", calibration=calibration)
    with pytest.raises(TypeError, match="calibration"):
        encode(make_kv(), Pipeline(), calibration=calibration)


def test_a_calibration_of_other_sizes_is_refused(centred: Recipe) -> None:
    pipeline = centred.build(Calibration("mean", {}, {"0000.keys": torch.zeros(2, 8)}))
    with pytest.raises(CodecError, match=r"values: calibration .* \(mean\): has no tensor '0000.values'"):
        encode(make_kv(), pipeline)
    pipeline = centred.build(Calibration("mean", {}, {"0000.keys": torch.zeros(2, 9)}))
    with pytest.raises(CodecError, match=r"keys: calibration .*0000.keys is \[2, 9\].*expected \[2, 8\]"):
        encode(make_kv(), pipeline)
