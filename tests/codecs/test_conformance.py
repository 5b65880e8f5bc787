"""What every stage and every recipe must hold to, discovered from the registry."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil

import pytest
import torch
from torch import Tensor

from kvtool.codecs import (
    KV,
    CodecError,
    LayerKV,
    Pipeline,
    decode,
    encode,
    recipes,
    stage_from_config,
    stages,
)
from kvtool.codecs.registry import FOLDERS
from kvtool.codecs.stage import Array, Payload, Spec, Stage

# Beside the defaults. A stage whose fields have no defaults needs an entry.
MORE = {
    "group": [
        {"bits": 4, "recent": 5, "group": 8, "axis": "channel"},
        {"bits": 2, "recent": 0, "group": 32},
        {"bits": 3, "recent": 0, "group": 7, "axis": "channel"},
        {"bits": 8, "recent": 32, "group": 1},
    ],
    "planes": [{"level": 19}],
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(2, 37, 10), (1, 1, 8), (3, 0, 8), (1, 161, 33), (2, 5, 0), (1, 1, 1), (2, 64, 64)]


def examples() -> list[Stage]:
    found: list[Stage] = []
    for (name, version), cls in stages().items():
        settings = MORE.get(name, [])
        try:
            found.append(cls())
        except TypeError:
            assert settings, f"{name}: no defaults, so MORE needs an entry"
        found += [stage_from_config({"name": name, "version": version, **s}) for s in settings]
    return found


def inputs(stage: Stage) -> list[tuple[Spec, Payload]]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for shape in SHAPES:
        for dtype in FLOATS:
            x = torch.randn(shape, generator=generator).to(dtype) * 3
            tensors = {"x": x}
            arrays = {"x": Array(shape, dtype)}
            if stage.kind == "entropy":
                for levels in (2, 4, 5, 256):
                    codes = torch.randint(0, levels, shape, dtype=torch.uint8, generator=generator)
                    tensors[f"codes{levels}"] = codes
                    arrays[f"codes{levels}"] = Array(shape, torch.uint8, levels=levels)
                tensors["index"] = torch.arange(shape[1], dtype=torch.int32)
                arrays["index"] = Array((shape[1],), torch.int32)
            found.append((Spec(arrays), tensors))
        constant = torch.full(shape, -0.3)
        found.append((Spec({"x": Array(shape, torch.float32)}), {"x": constant}))
    return found


def equal(a: Payload, b: Payload) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def corrupted(payload: Payload, spec: Spec) -> list[Payload]:
    """The payload with bits flipped here and there, and, where a length is open, cut short."""
    found = []
    for name, tensor in payload.items():
        n = tensor.numel() * tensor.element_size()
        for position in sorted({0, 7, n // 3, n // 2, n - 1} & set(range(n))):
            content = tensor.clone()
            content.view(-1).view(torch.uint8)[position] ^= 0x81
            found.append({**payload, name: content})
        if spec.arrays[name].at_most:
            found += [{**payload, name: tensor[:length]} for length in (0, n // 2, max(n - 1, 0))]
            if n < spec.arrays[name].numel:
                found.append({**payload, name: torch.cat([tensor, tensor.new_zeros(1)])})
    return found


each_stage = pytest.mark.parametrize("stage", examples(), ids=repr)


@each_stage
def test_stage_round_trip(stage: Stage) -> None:
    for spec, payload in inputs(stage):
        before = {name: tensor.clone() for name, tensor in payload.items()}
        planned = stage.plan(spec)
        encoded = stage.encode(payload, spec)
        planned.check(encoded, stage.name)
        assert sum(t.numel() * t.element_size() for t in encoded.values()) <= planned.nbytes
        assert equal(encoded, stage.encode(payload, spec)), "encoding is not deterministic"
        decoded = stage.decode(encoded, spec)
        assert equal(payload, before), "a stage wrote to its input"
        if stage.kind == "prune":
            continue
        spec.check(decoded, stage.name)
        assert all(tensor.is_contiguous() for tensor in decoded.values())
        bound = stage.error(payload, spec)
        for name, tensor in payload.items():
            if bound == 0 or not tensor.is_floating_point():
                assert torch.equal(decoded[name], tensor)
            elif tensor.numel():
                assert (decoded[name].double() - tensor.double()).abs().max() <= bound


@each_stage
def test_stage_config_survives_json(stage: Stage) -> None:
    config = json.loads(json.dumps(stage.to_config()))
    assert stage_from_config(config) == stage
    for broken in (
        {**config, "name": "nothing"},
        {**config, "version": 1_000},
        {**config, "version": "1"},
        {**config, "unknown": 1},
    ):
        with pytest.raises(CodecError, match=r"nothing|version|unknown"):
            stage_from_config(broken)
    for field in set(config) - {"name", "version"}:
        with pytest.raises(CodecError, match=field):
            stage_from_config({**config, field: {"wrong": "type"}})


@each_stage
def test_stage_survives_hostile_bytes(stage: Stage) -> None:
    refused = 0
    for spec, payload in inputs(stage)[::4]:
        planned = stage.plan(spec)
        for hostile in corrupted(stage.encode(payload, spec), planned):
            try:
                decoded = stage.decode(hostile, spec)
            except CodecError:
                refused += 1
            else:
                if stage.kind != "prune":
                    spec.check(decoded, stage.name)
    if any(array.at_most for array in stage.plan(inputs(stage)[0][0]).arrays.values()):
        assert refused


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_stage_in_the_folders_is_registered(folder: str) -> None:
    package = importlib.import_module(f"kvtool.codecs.{folder}")
    registered = set(stages().values())
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        own = [
            cls
            for _, cls in inspect.getmembers(module, inspect.isclass)
            if issubclass(cls, Stage) and cls.__module__ == module.__name__ and not inspect.isabstract(cls)
        ]
        assert own, f"{info.name} holds no stage"
        for cls in own:
            assert cls in registered, f"{cls} is not registered"
            assert cls.kind == folder


def make_kv(
    tokens: int, keys: tuple[int, int], values: tuple[int, int], dtype: torch.dtype, start: int = 5
) -> KV:
    generator = torch.Generator().manual_seed(tokens)

    def side(heads: int, channels: int) -> Tensor:
        return torch.randn(heads, tokens, channels, generator=generator).to(dtype)

    layers = [LayerKV(side(*keys), side(*values), torch.arange(start, start + tokens)) for _ in range(3)]
    return KV(tuple(layers), torch.arange(tokens), {"rope_theta": 10000.0})


KVS = {
    "plain": make_kv(200, (2, 16), (2, 16), torch.float32),
    "bfloat16": make_kv(200, (2, 16), (2, 16), torch.bfloat16),
    "float16": make_kv(200, (2, 16), (2, 16), torch.float16),
    "unequal": make_kv(161, (1, 33), (1, 9), torch.float32),
    "one token": make_kv(1, (2, 8), (2, 8), torch.float32),
    "window only": make_kv(100, (2, 8), (2, 8), torch.float32),
    "empty": make_kv(0, (2, 8), (2, 8), torch.float32),
}
PIPELINES = {name: recipe.build() for name, recipe in recipes().items()} | {"raw": Pipeline()}

each_pipeline = pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)


@each_pipeline
@pytest.mark.parametrize("kv", KVS.values(), ids=KVS)
def test_recipe_round_trip(pipeline: Pipeline, kv: KV) -> None:
    blob = encode(kv, pipeline)
    again = encode(kv, Pipeline.from_config(json.loads(json.dumps(pipeline.to_config()))))
    assert equal(blob.tensors, again.tensors)
    assert json.dumps(blob.metadata) == json.dumps(again.metadata)
    back = decode(type(blob)(blob.tensors, json.loads(json.dumps(blob.metadata))))
    assert torch.equal(back.token_ids, kv.token_ids)
    assert back.rope == kv.rope
    for layer, decoded in zip(kv.layers, back.layers, strict=True):
        assert torch.equal(decoded.positions, layer.positions)
        bounds = pipeline.error(layer)
        for a, b, bound in zip(
            (layer.keys, layer.values), (decoded.keys, decoded.values), bounds, strict=True
        ):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert b.is_contiguous()
            assert not a.numel() or (a.double() - b.double()).abs().max() <= bound


@each_pipeline
def test_recipe_refuses_tensors_that_are_not_planned(pipeline: Pipeline) -> None:
    blob = encode(KVS["plain"], pipeline)
    for name, tensor in blob.tensors.items():
        missing = {n: t for n, t in blob.tensors.items() if n != name}
        for wrong in (
            missing,
            {**blob.tensors, name: tensor.unsqueeze(0)},
            {**blob.tensors, name: tensor.to(torch.float64)},
            {**blob.tensors, name: torch.cat([tensor, tensor, tensor.new_zeros(64, *tensor.shape[1:])])},
            {**blob.tensors, "layers.0000.odd": tensor},
        ):
            with pytest.raises(CodecError, match=r"token_ids|layer|odd"):
                decode(type(blob)(wrong, blob.metadata))
