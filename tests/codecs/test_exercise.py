"""The stage and the recipe of docs/exercises/recipe.md, as the plugin that the page makes of them."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kvtool.codecs import (
    KV,
    Array,
    CodecError,
    LayerKV,
    Pipeline,
    Place,
    Recipe,
    Rope,
    Spec,
    Stage,
    decode,
    encode,
    recipe_registry,
    stage_registry,
)
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.transform.unrope import Unrope
from kvtool.commands.recipes import run as list_recipes

PAGE = (Path(__file__).parents[2] / "docs/exercises/recipe.md").read_text()
FILES = dict(re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
STAGE, RECIPE, PACKAGE = FILES


def load(path: Path) -> ModuleType:
    # Test modules lie in no package that could be imported from.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


conformance = load(Path(__file__).with_name("test_conformance.py"))


def laws(of: str) -> list[Callable[..., None]]:
    """The conformance suite's tests of every stage, or of every recipe."""
    found = [law for name, law in vars(conformance).items() if name.startswith("test_")]
    return [law for law in found if of in inspect.signature(law).parameters]


def entry_points() -> dict[str, list[EntryPoint]]:
    """By group, those of the page's pyproject.toml."""
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    groups = tomllib.loads(block)["project"]["entry-points"]
    return {
        group: [EntryPoint(name, value, group) for name, value in points.items()]
        for group, points in groups.items()
    }


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's files in a package of their own, known by its entry points alone."""
    if "skvq" in recipe_registry.recipes():
        pytest.skip("the exercise is being done in this very tree")
    package = tmp_path_factory.mktemp("plugin") / Path(PACKAGE).parent
    package.mkdir()
    for name, source in FILES.items():
        own = source.replace("kvtool.codecs.quantize.clipped", f"{package.name}.clipped")
        assert (own != source) == (name == RECIPE)
        (package / Path(name).name).write_text(own)
    found, points, before = importlib.metadata.entry_points, entry_points(), dict(stage_registry._known())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package.parent)
        for module in (recipe_registry, stage_registry):
            patch.setattr(module, "entry_points", lambda group: [*found(group=group), *points[group]])
        stage_registry._discover.cache_clear()
        recipe_registry.recipes.cache_clear()
        yield
    stage_registry._stages.clear()
    stage_registry._stages.update(before)
    recipe_registry.recipes.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
        del sys.modules[name]
    assert "skvq" not in recipe_registry.recipes()
    assert stage_registry._known() == before


def clipped(**fields: int) -> Stage:
    stage = stage_registry.stage_from_config({"name": "clipped", "version": 1, **fields})
    assert isinstance(stage, Stage)
    return stage


def skvq() -> Recipe:
    return recipe_registry.recipe("skvq")


def keys_with_outliers() -> tuple[torch.Tensor, KV]:
    """Keys [2, 300, 64] of which a few channels are large, and the same rotated, as a cache holds them."""
    x = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(3))
    x[:, :, 5::13] += torch.tensor([12.0, -9.0, 15.0, -14.0, 10.0])
    rope, positions = Rope(tuple(10_000.0 ** (-i / 32) for i in range(32))), torch.arange(300)
    spec = Spec({"x": Array(tuple(x.shape), x.dtype)}, place=Place(ropes=(rope,)))
    rotated = Unrope().decode({"x": x, "positions": positions}, spec)["x"]
    known = {"rotations": [rope.to_json()], "rotation_of_layer": [0]}
    return x, KV((LayerKV(rotated, rotated, positions),), positions, known)


def squared_error(pipeline: Pipeline, kv: KV) -> float:
    back = decode(encode(kv, pipeline))
    return (back.layers[0].keys - kv.layers[0].keys).square().sum().item()


def test_the_page_has_a_stage_and_a_recipe() -> None:
    assert STAGE == "codecs/quantize/clipped.py"
    assert RECIPE == "kvtool/recipes/quantization/skvq.py"
    assert type(clipped()).__module__ == f"{Path(PACKAGE).parent}.clipped"
    assert clipped() in skvq().build().keys
    # In the folder nothing else makes it known; a plugin has an entry point.
    assert "\n@register\n" in FILES[STAGE]


def test_the_laws_are_found() -> None:
    assert len(laws("stage")) >= 3
    assert len(laws("recipe")) >= 2


@pytest.mark.parametrize("law", laws("stage"), ids=lambda law: law.__name__)
def test_the_stage_conforms(law: Callable[[Stage], None]) -> None:
    for stage in type(clipped()).examples():
        law(stage)


@pytest.mark.parametrize("law", laws("recipe"), ids=lambda law: law.__name__)
def test_the_recipe_conforms(law: Callable[..., None]) -> None:
    each: list[dict[str, Any]] = [{}]
    if "name" in inspect.signature(law).parameters:
        each = [{"name": name} for name in conformance.KVS]
    for arguments in each:
        law(skvq(), **arguments)


def test_the_stage_refuses_what_float16_cannot_hold() -> None:
    for x in (torch.tensor([[[65504.0, -65504.0]]]).half(), torch.tensor([[[1e5, 0.0]]])):
        spec = Spec.of(x)
        with pytest.raises(CodecError, match=r"'clipped': .* beyond float16's"):
            clipped().encode({"x": x}, spec)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_errs_less_than_plain_groups_do(bits: int) -> None:
    x, _ = keys_with_outliers()
    spec = Spec.of(x)
    errors = []
    for stage in (clipped(bits=bits, group=32), Group(bits=bits, group=32, axis="channel")):
        decoded = stage.decode(stage.encode({"x": x}, spec), spec)["x"]
        errors.append((decoded - x).square().sum().item())
    assert errors[0] < errors[1]


def test_the_recipe_errs_less_than_plain_groups_on_keys_with_outliers() -> None:
    _, kv = keys_with_outliers()
    plain = Pipeline(keys=(Group(bits=2, group=32, axis="channel"), Pack()))
    errors = [squared_error(p, kv) for p in (skvq().build(bits=2, group=32, recent=0, sinks=0), plain)]
    assert errors[0] < errors[1] / 2


def test_more_bits_err_less() -> None:
    _, kv = keys_with_outliers()
    errors = [squared_error(skvq().build(bits=bits, recent=0, sinks=0), kv) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)


def test_the_list_of_recipes_is_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    list_recipes(None, as_json=False)
    listed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (block,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        assert " ".join(line.split()) in listed
