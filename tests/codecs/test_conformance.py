"""What every stage and every recipe must hold to, discovered from the registry."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import kvtool.codecs
import kvtool.recipes
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
    Place,
    Recipe,
    Rope,
    Sample,
    decode,
    encode,
    recipes,
    stage_from_config,
    stages,
)
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import BaseStage, Stage
from kvtool.codecs.stage_registry import FOLDERS, prune_stages
from tests.codecs.prune.scored import scored

CONTRACTS = ("kvtool.codecs.stage", "kvtool.codecs.prune.stage")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(2, 37, 10), (1, 1, 8), (3, 0, 8), (1, 161, 33), (2, 5, 0), (1, 1, 1), (2, 64, 64)]
# The only sizes that a stage with a calibration takes: those of its examples.
SHAPES += [(2, 29, 6), (2, 1, 6), (2, 0, 6)]
LAYERS = 2


def examples() -> list[Stage]:
    return [stage for cls in stages().values() for stage in cls.examples()]


def needed(needs: Iterable[str], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """What stages may need beyond ``x`` [..., H, T, D], made up."""
    *layers, heads, tokens, channels = shape
    generator = torch.Generator().manual_seed(11)
    made = {
        "positions": torch.arange(5, tokens + 5).expand(*layers, tokens),
        "token_ids": torch.randint(0, 40, (tokens,), generator=generator).expand(*layers, tokens),
        "importance": torch.rand(*layers, tokens, generator=generator) + 1e-3,
        "attention": torch.rand(*layers, heads, tokens, generator=generator),
        "queries": torch.randn(*layers, 2 * heads, 6, channels, generator=generator),
        **({} if layers else scored(tokens, heads, channels=channels).inputs),
    }
    return {name: made[name] for name in needs}


def place(shape: tuple[int, ...]) -> Place:
    """The last layers of a model whose keys are rotated in all channels but an odd one."""
    count = 1 if len(shape) == 3 else shape[0]
    rope = Rope(tuple(1.0 / 100.0 ** (i / 8) for i in range(shape[-1] // 2)))
    return Place(first=2, count=count, total=2 + count, ropes=(rope,) * count)


def inputs(stage: Stage) -> list[tuple[Spec, Payload]]:
    """Payloads of every shape and dtype that the stage accepts; there must be some. The rest is refused."""
    generator = torch.Generator().manual_seed(7)
    found: list[tuple[Spec, Payload]] = []
    for shape in [shape for three in SHAPES for shape in (three, (LAYERS, *three))]:
        for dtype in (*FLOATS, None):
            x = torch.full(shape, -0.3) if dtype is None else torch.randn(shape, generator=generator) * 3
            tensors = {"x": x.to(dtype or torch.float32)}
            arrays = {"x": Array(shape, tensors["x"].dtype)}
            if stage.kind == "entropy":
                for levels in (2, 4, 5, 256):
                    codes = torch.randint(0, levels, shape, dtype=torch.uint8, generator=generator)
                    tensors[f"codes{levels}"] = codes
                    arrays[f"codes{levels}"] = Array(shape, torch.uint8, levels=levels)
                tensors["index"] = torch.arange(shape[-2], dtype=torch.int32)
                # As transform coefficients are quantized: few are far from 0, and each token has a step.
                bell = torch.randn(shape[-2:], generator=generator)
                tensors["codes"] = (bell**5).clamp(-(1 << 15), (1 << 15) - 1).to(torch.int16)
                exponents = torch.randint(0, 65, shape[-2:-1], generator=generator)
                tensors["exponents"] = exponents.to(torch.uint8)
                for name in ("index", "codes", "exponents"):
                    arrays[name] = Array(tuple(tensors[name].shape), tensors[name].dtype)
            spec = Spec(arrays, place=place(shape))
            with suppress(CodecError):
                stage.plan(spec)
                found.append((spec, tensors | needed(stage.needs, shape)))
    assert found, f"{stage} accepts nothing"
    return found


def own(payload: Payload, spec: Spec) -> Payload:
    """A payload without what it was given beyond its spec."""
    return {name: payload[name] for name in spec.arrays}


def decode_stage(stage: Stage, payload: Payload, spec: Spec) -> Payload:
    extra = needed(stage.needs & {"positions", "token_ids"}, spec.arrays["x"].shape)
    return stage.decode({**payload, **extra}, spec)


def equal(a: Payload, b: Payload) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def corrupted(payload: Payload, spec: Spec) -> list[Payload]:
    """The payload with bits flipped here and there, and, where a length is open, cut short."""
    found: list[Payload] = []
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


EXAMPLES = examples()
each_stage = pytest.mark.parametrize("stage", EXAMPLES, ids=repr)


@each_stage
def test_stage_round_trip(stage: Stage) -> None:
    for spec, payload in inputs(stage):
        before = {name: tensor.clone() for name, tensor in payload.items()}
        planned = stage.plan(spec)
        encoded = stage.encode(payload, spec)
        planned.check(encoded, stage.name)
        assert sum(t.numel() * t.element_size() for t in encoded.values()) <= planned.nbytes
        assert equal(encoded, stage.encode(payload, spec)), "encoding is not deterministic"
        decoded = decode_stage(stage, encoded, spec)
        assert equal(payload, before), "a stage wrote to its input"
        spec.check(decoded, stage.name)
        assert all(tensor.is_contiguous() for tensor in decoded.values())
        bound = stage.error(payload, spec)
        for name, tensor in own(payload, spec).items():
            if bound == 0 or not tensor.is_floating_point():
                assert torch.equal(decoded[name], tensor)
            elif tensor.numel():
                assert (decoded[name].double() - tensor.double()).abs().max() <= bound


@each_stage
def test_stage_config_survives_json(stage: Stage) -> None:
    config = json.loads(json.dumps(stage.to_config()))
    calibrations = {calibration.digest: calibration for calibration in stage.calibrations}
    assert stage_from_config(config, calibrations) == stage
    if calibrations:
        with pytest.raises(MissingCalibration, match=min(calibrations)):
            stage_from_config(config)
    for broken in (
        {**config, "name": "nothing"},
        {**config, "version": 1_000},
        {**config, "version": "1"},
        {**config, "unknown": 1},
    ):
        with pytest.raises(CodecError, match=r"nothing|version|unknown"):
            stage_from_config(broken, calibrations)
    for field in set(config) - {"name", "version"}:
        with pytest.raises(CodecError, match=field):
            stage_from_config({**config, field: {"wrong": "type"}}, calibrations)


@each_stage
def test_stage_survives_hostile_bytes(stage: Stage) -> None:
    refused = 0
    for spec, payload in inputs(stage)[::3]:
        planned = stage.plan(spec)
        for hostile in corrupted(stage.encode(payload, spec), planned):
            try:
                decoded = decode_stage(stage, hostile, spec)
            except CodecError:
                refused += 1
            else:
                spec.check(decoded, stage.name)
    if any(array.at_most for array in stage.plan(inputs(stage)[0][0]).arrays.values()):
        assert refused


def stage_classes(module: ModuleType) -> list[type[BaseStage]]:
    """The stages that a module defines; abstract ones are what others share."""
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, BaseStage) and cls.__module__ == module.__name__ and not inspect.isabstract(cls)
    ]


def check_stages_can_be_found(module: ModuleType) -> None:
    """Each stage that the module defines lies in its kind's folder, where discovery looks, and is registered."""
    folder = module.__name__.rpartition(".")[0]
    for cls in stage_classes(module):
        # A decorator alone is not enough: this suite may have imported what discovery never does.
        assert folder == f"kvtool.codecs.{cls.kind}", f"{cls} is out of place"
        assert cls in {*stages().values(), *prune_stages().values()}, f"{cls} is not registered"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_stage_in_the_folders_is_registered(folder: str) -> None:
    package = importlib.import_module(f"kvtool.codecs.{folder}")
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        # What stages of a kind share is beside them.
        assert stage_classes(module) or info.ispkg or info.name in CONTRACTS, f"{info.name} holds no stage"
        check_stages_can_be_found(module)


def test_no_stage_lies_outside_the_folders() -> None:
    for info in pkgutil.walk_packages(kvtool.codecs.__path__, "kvtool.codecs."):
        if info.name not in CONTRACTS:
            check_stages_can_be_found(importlib.import_module(info.name))


@pytest.mark.parametrize(
    ("name", "message"),
    [("entropy.new", "not registered"), ("entropy.deeper.new", "out of place"), ("new", "out of place")],
)
def test_a_stage_that_nobody_would_find_is_noticed(name: str, message: str) -> None:
    @dataclass(frozen=True)
    class Forgotten(Pack):
        name: ClassVar[str] = "forgotten"

    module = ModuleType(f"kvtool.codecs.{name}")
    Forgotten.__module__ = module.__name__
    vars(module)["Forgotten"] = Forgotten
    with pytest.raises(AssertionError, match=message):
        check_stages_can_be_found(module)


def test_every_recipe_in_the_folder_is_registered() -> None:
    for info in pkgutil.walk_packages(kvtool.recipes.__path__, "kvtool.recipes."):
        if info.ispkg:
            continue
        module = importlib.import_module(info.name)
        own = [item for item in vars(module).values() if isinstance(item, Recipe)]
        assert own or info.name == "kvtool.recipes.common", f"{info.name} holds no recipe"
        for recipe in own:
            assert recipes().get(recipe.name) is recipe, f"{recipe.name} of {info.name} is not registered"


def make_kv(
    tokens: int,
    keys: tuple[int, int],
    values: tuple[int, int],
    dtype: torch.dtype,
    start: int = 5,
    seed: int = 0,
) -> KV:
    generator = torch.Generator().manual_seed(tokens + seed)

    def side(heads: int, channels: int) -> Tensor:
        return torch.randn(heads, tokens, channels, generator=generator).to(dtype)

    layers = [LayerKV(side(*keys), side(*values), torch.arange(start, start + tokens)) for _ in range(3)]
    rope = Rope(tuple(1.0 / 100.0 ** (i / 8) for i in range(keys[1] // 2)))
    rotations = {"rotations": [rope.to_json()], "rotation_of_layer": [0] * len(layers)}
    return KV(tuple(layers), torch.arange(tokens), {"rope_theta": 10000.0, **rotations})


KVS = {
    "plain": make_kv(200, (2, 16), (2, 16), torch.float32),
    "bfloat16": make_kv(200, (2, 16), (2, 16), torch.bfloat16),
    "float16": make_kv(200, (2, 16), (2, 16), torch.float16),
    "unequal": make_kv(161, (1, 33), (1, 9), torch.float32),
    "one token": make_kv(1, (2, 8), (2, 8), torch.float32),
    "window only": make_kv(100, (2, 8), (2, 8), torch.float32),
    "empty": make_kv(0, (2, 8), (2, 8), torch.float32),
}
RECIPES = {**recipes(), "raw": Recipe("raw", "", Pipeline)}


@cache
def samples(name: str) -> list[Sample]:
    """Two segments of a model whose caches have the sizes of ``KVS[name]``, with gradients."""
    layer = KVS[name].layers[0]
    keys, values = ((side.shape[0], side.shape[2]) for side in (layer.keys, layer.values))
    made = [make_kv(300, keys, values, layer.keys.dtype, seed=seed) for seed in range(4)]
    gradients = (
        tuple(LayerKV(x.keys.float(), x.values.float(), x.positions) for x in kv.layers) for kv in made[2:]
    )
    return [Sample(kv, gradient) for kv, gradient in zip(made[:2], gradients, strict=True)]


_calibrations: dict[tuple[str, str], Calibration] = {}


def built(recipe: Recipe, name: str) -> Pipeline:
    """The recipe's pipeline for ``KVS[name]``, calibrated on samples if it must be; one that prunes keeps all."""
    if recipe.fit is None:
        assert not recipe.calibration, f"{recipe.name} cannot be calibrated"
        return recipe.build(keep=1.0) if recipe.prunes else recipe.build()
    if (recipe.name, name) not in _calibrations:
        _calibrations[recipe.name, name] = recipe.fit(samples(name))
    return recipe.build(_calibrations[recipe.name, name])


INPUTS = {
    name: {
        need: [needed([need], tuple(layer.keys.shape))[need] for layer in kv.layers]
        for need in ("attention", "importance", "queries", "token_ids", *scored(1).inputs)
    }
    for name, kv in KVS.items()
}

each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def test_every_recipe_and_every_stage_is_tried() -> None:
    assert recipes().items() <= RECIPES.items()
    assert {type(stage) for stage in EXAMPLES} == set(stages().values())


@each_recipe
@pytest.mark.parametrize("name", KVS)
def test_recipe_round_trip(recipe: Recipe, name: str) -> None:
    kv, inputs, pipeline = KVS[name], INPUTS[name], built(recipe, name)
    blob = encode(kv, pipeline, inputs=inputs)
    assert bool(blob.calibrations) == bool(recipe.calibration)
    calibrations = {found.digest: Calibration.from_bytes(found.to_bytes()) for found in blob.calibrations}
    same = Pipeline.from_config(json.loads(json.dumps(pipeline.to_config())), calibrations)
    again = encode(kv, same, inputs=inputs)
    assert equal(blob.tensors, again.tensors)
    assert json.dumps(blob.metadata) == json.dumps(again.metadata)
    back = decode(Blob(blob.tensors, json.loads(json.dumps(blob.metadata)), tuple(calibrations.values())))
    assert torch.equal(back.token_ids, kv.token_ids)
    assert back.rope == kv.rope
    contents = Contents.from_metadata(blob.metadata, calibrations)
    for group in contents.groups:
        chosen = {need: [tensors[index] for index in group] for need, tensors in inputs.items()}
        bounds = pipeline.error([kv.layers[index] for index in group], contents.place(group), chosen)
        for index in group:
            layer, decoded = kv.layers[index], back.layers[index]
            assert torch.equal(decoded.positions, layer.positions)
            for side, bound in zip(("keys", "values"), bounds, strict=True):
                a, b = getattr(layer, side), getattr(decoded, side)
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert b.is_contiguous()
                assert not a.numel() or (a.double() - b.double()).abs().max() <= bound


@each_recipe
def test_recipe_refuses_tensors_that_are_not_planned(recipe: Recipe) -> None:
    blob = encode(KVS["plain"], built(recipe, "plain"), inputs=INPUTS["plain"])
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
                decode(replace(blob, tensors=wrong))


@each_recipe
def test_recipe_is_calibrated_the_same_each_time_and_is_not_built_without(recipe: Recipe) -> None:
    if recipe.fit is None:
        with pytest.raises(CodecError, match=f"{recipe.name}.*expected none"):
            recipe.build(Calibration("another", {}, {}))
        return
    calibration = recipe.fit(samples("plain"))
    assert calibration.method == recipe.calibration
    assert calibration.digest == recipe.fit(samples("plain")).digest
    assert recipe.build(calibration).calibrations == (calibration,)
    with pytest.raises(NeedsCalibration, match=recipe.name):
        recipe.build()
    with pytest.raises(NeedsCalibration, match=recipe.name):
        recipe.nominal_bits()
    with pytest.raises(CodecError, match=f"{recipe.name}.*expected one of"):
        recipe.build(Calibration("another", {}, {}))
    with pytest.raises(CodecError):
        encode(KVS["unequal"], recipe.build(calibration), inputs=INPUTS["unequal"])
    with pytest.raises(CodecError):
        encode(KVS["plain"], recipe.build(replace(calibration, tensors={}, facts={})), inputs=INPUTS["plain"])
