"""Stages by name and version.

They are every stage in a module of ``prune/``, ``transform/``, ``quantize/`` and ``entropy/``, and the entry points of the
group ``kvtool.stages``, each of which is a stage class.
"""

from __future__ import annotations

import pkgutil
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kvtool.codecs.calibration import NONE, Calibration
from kvtool.codecs.errors import CodecError, MissingCalibration
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.spec import Json
from kvtool.codecs.stage import BaseStage, Stage

FOLDERS = ("prune", "transform", "quantize", "entropy")

S = TypeVar("S", bound=type[BaseStage])
_stages: dict[tuple[str, int], type[BaseStage]] = {}


def register(stage: S) -> S:
    """Class decorator: make a stage known under its name and version.

    A new version is a new class; the old one stays, so that what it wrote can still be read.
    """
    key = (stage.name, stage.version)
    if _stages.setdefault(key, stage) is not stage:
        raise CodecError(f"stage {key[0]!r} version {key[1]} is registered twice: {_stages[key]}, {stage}")
    return stage


def stages() -> Mapping[tuple[str, int], type[Stage]]:
    """Every stage of a side, by name and version."""
    return {key: stage for key, stage in _known().items() if issubclass(stage, Stage)}


def prune_stages() -> Mapping[tuple[str, int], type[Prune]]:
    """Every stage that leaves out tokens, by name and version."""
    return {key: stage for key, stage in _known().items() if issubclass(stage, Prune)}


def stage_from_config(config: Json, calibrations: Mapping[str, Calibration] = NONE) -> BaseStage:
    """The stage that ``to_config`` described, its calibration looked up by digest.

    Raises CodecError, naming the stage and the field; MissingCalibration for a digest that is missing.
    """
    if not isinstance(config, Mapping):
        raise CodecError(f"stage: is {config!r}, expected an object with name and version")
    name, version = config.get("name"), config.get("version")
    if not isinstance(name, str) or type(version) is not int:
        raise CodecError(f"stage: name is {name!r} and version {version!r}, expected a string and an integer")
    cls = _find(name, version)
    label = f"{cls.kind} stage {name!r}"
    hints, values = get_type_hints(cls), dict(config)
    del values["name"], values["version"]
    arguments: dict[str, Any] = {}
    for field in fields(cls):
        if field.name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                raise CodecError(f"{label}: {field.name} is missing")
            continue
        value, hint = values.pop(field.name), hints[field.name]
        if not _fits(value, hint):
            raise CodecError(f"{label}: {field.name} is {value!r}, expected {field.type}")
        if hint is Calibration:
            arguments[field.name] = _calibration(str(value), calibrations, label)
        else:
            arguments[field.name] = tuple(value) if isinstance(value, list) else value
    if values:
        known = ", ".join(field.name for field in fields(cls)) or "none"
        raise CodecError(f"{label}: unknown field {min(values)!r}; its fields are: {known}")
    return cls(**arguments)


@cache
def _discover() -> None:
    for folder in FOLDERS:
        package = import_module(f"kvtool.codecs.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    for point in entry_points(group="kvtool.stages"):
        register(point.load())


def _known() -> Mapping[tuple[str, int], type[BaseStage]]:
    _discover()
    return _stages


def _find(name: str, version: int) -> type[BaseStage]:
    known = _known()
    versions = sorted(v for n, v in known if n == name)
    if not versions:
        names = ", ".join(sorted({n for n, _ in known}))
        raise CodecError(f"no stage is called {name!r}; there are: {names}")
    if version > versions[-1]:
        newest = f"{versions[-1]}, the newest known here"
        raise CodecError(f"stage {name!r} has version {version}, newer than {newest}")
    if version not in versions:
        raise CodecError(f"stage {name!r} has no version {version}; there are: {versions}")
    return known[name, version]


def _calibration(digest: str, calibrations: Mapping[str, Calibration], stage: str) -> Calibration:
    try:
        return calibrations[digest]
    except KeyError:
        raise MissingCalibration(stage, digest) from None


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if hint is Calibration:
        return isinstance(value, str)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (type(None) if hint is None else hint)
