from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from kvtool.codecs import KV, CodecError, LayerKV, Pipeline, encode, recipe, recipes, stage_registry
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.stage import Kind
from kvtool.codecs.transform.anchors import Anchors
from kvtool.compression.compress import compress


def test_kivi_takes_the_bits_that_its_arithmetic_says() -> None:
    layer = LayerKV(torch.randn(3, 1024, 64), torch.randn(3, 1024, 64), torch.arange(1024))
    blob = encode(KV((layer,) * 4, torch.arange(1024)), "kivi", recent=32)
    # 2 bits and two float16 per 32 values for 992 tokens, 16 bits for 32.
    payload = (992 * 3 + 32 * 16) / 1024
    token_ids = 32 / (4 * 2 * 3 * 64)
    assert 8 * blob.nbytes / (4 * layer.n_elements) == pytest.approx(payload + token_ids, abs=0.02)


def test_fewer_bits_are_smaller_and_worse() -> None:
    layer = LayerKV(torch.randn(2, 300, 64), torch.randn(2, 300, 64), torch.arange(300))
    kv = KV((layer,), torch.arange(300))
    sizes = [encode(kv, "kivi", bits=bits).nbytes for bits in range(1, 9)]
    errors = [recipe("kivi").build(bits=bits).error([layer])[0] for bits in range(1, 9)]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bits": 9}, "bits is 9, expected 1 to 8"),
        ({"bits": True}, "bits is True"),
        ({"bits": 2.0}, "bits is 2.0"),
        ({"group": 0}, "group is 0"),
        ({"level": 3}, "no parameter 'level'; it has: bits, group, recent, sinks"),
    ],
)
def test_unknown_parameters_and_values_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        recipe("kivi").build(**parameters)


def test_cachegen_has_anchors_where_they_are_asked_for() -> None:
    plain, anchored = (recipe("cachegen").build(**given).keys for given in ({}, {"group": 10}))
    assert anchored == (Anchors(group=10), *plain)
    with pytest.raises(CodecError, match="group is 1, expected 2"):
        recipe("cachegen").build(group=1)


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(CodecError, match=r"'kiwi'; there are: .*kivi.*lossless"):
        recipe("kiwi")


def test_recipes_are_described() -> None:
    for name, found in recipes().items():
        assert found.name == name
        assert found.summary
        assert found.make.__doc__
        for parameter in found.parameters.values():
            assert parameter.accepts(parameter.default)
            assert parameter.choices
            assert parameter.help


def test_a_pipeline_takes_no_parameters() -> None:
    layer = LayerKV(torch.randn(1, 2, 2), torch.randn(1, 2, 2), torch.arange(2))
    with pytest.raises(TypeError, match="bits"):
        encode(KV((layer,), torch.arange(2)), Pipeline(), bits=2)


@pytest.fixture
def kept_registry() -> Iterator[None]:
    before = dict(stage_registry._known())
    yield
    stage_registry._stages.clear()
    stage_registry._stages.update(before)


@pytest.mark.usefixtures("kept_registry")
def test_stages_of_other_packages_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Foreign(Pack):
        name: ClassVar[str] = "foreign"

    point = SimpleNamespace(load=lambda: Foreign)
    monkeypatch.setattr(
        stage_registry, "entry_points", lambda group: [point] if group == "kvtool.stages" else []
    )
    stage_registry._discover.cache_clear()
    assert isinstance(stage_registry.stage_from_config({"name": "foreign", "version": 1}), Foreign)


@pytest.mark.usefixtures("kept_registry")
def test_a_second_stage_of_the_same_name_and_version_is_refused() -> None:
    @dataclass(frozen=True)
    class Other(Pack):
        name: ClassVar[str] = "pack"
        kind: ClassVar[Kind] = "entropy"

    with pytest.raises(CodecError, match=r"'pack' version 1 is registered twice"):
        stage_registry.register(Other)
    assert stage_registry.register(Pack) is Pack


@pytest.mark.usefixtures("kept_registry")
def test_a_later_version_stands_beside_the_earlier() -> None:
    @stage_registry.register
    @dataclass(frozen=True)
    class Later(Pack):
        version: ClassVar[int] = 3

    assert isinstance(stage_registry.stage_from_config({"name": "pack", "version": 3}), Later)
    assert type(stage_registry.stage_from_config({"name": "pack", "version": 1})) is Pack
    with pytest.raises(CodecError, match="no version 2"):
        stage_registry.stage_from_config({"name": "pack", "version": 2})
    with pytest.raises(CodecError, match="version 4, newer than 3"):
        stage_registry.stage_from_config({"name": "pack", "version": 4})


@pytest.mark.parametrize("config", [None, [], "pack", {}, {"name": "pack"}, {"name": 1, "version": 1}])
def test_what_is_no_configuration_is_refused(config: object) -> None:
    with pytest.raises(CodecError):
        stage_registry.stage_from_config(config)  # type: ignore[arg-type]


def test_nominal_bits_of_more_layers_than_the_common_model_has() -> None:
    assert recipe("xkv").nominal_bits(layers=64) == recipe("xkv").nominal_bits(layers=32)


def test_no_parameter_has_the_name_of_an_argument_of_compress() -> None:
    taken = signature(compress).parameters.keys()
    for name, found in recipes().items():
        assert not found.parameters.keys() & taken, f"{name}: cannot be given to compress"
