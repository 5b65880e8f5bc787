"""Resolves a request: which model, calibration, setting and pipeline it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from kvtool.calibration.bundled_calibrations import is_bundled
from kvtool.calibration.calibrate import maker
from kvtool.calibration.learning import OnProgress
from kvtool.calibration.lookup import FindCalibration, MissingCalibration, finder
from kvtool.calibration.search import Setting
from kvtool.codecs import CodecError, Pipeline
from kvtool.codecs.recipe_registry import is_recipe
from kvtool.compression.joint.choice import Choice
from kvtool.compression.joint.find import OnSetting, find_choice
from kvtool.compression.preset import ChosenPreset, choose_preset
from kvtool.compression.rate_control import find_setting
from kvtool.compression.request import Request
from kvtool.compression.target import recipe_of
from kvtool.engines.stage_inputs import refuse_unmet
from kvtool.errors import KvtoolError, UsageError
from kvtool.model.model import Model, load_model
from kvtool.store.base import Store
from kvtool.store.segments import SegmentRef, holds_inputs

ModelSource: TypeAlias = "Model | Callable[[], Model] | None"
"""A model, a function that loads one where it is needed, or None for the embedded one."""

READY = (
    "using the calibration that comes with kvtool for this model; kvtool calibrate makes one from your documents, once, "
    "with which files are usually smaller"
)


@dataclass(frozen=True)
class Job:
    """The work on every document. ``record`` tells manifests how the variant was made.

    ``model`` is None where none is needed. ``setting`` is the one that was searched for, None where none was; ``preset`` is
    the one that decides it, None where none does.
    """

    variant: str
    source: str
    pipeline: Pipeline
    record: Mapping[str, object]
    model: Model | None = None
    setting: Setting | Choice | None = None
    preset: ChosenPreset | None = None


def resolve(
    request: Request,
    store: Store,
    names: Sequence[str],
    model: ModelSource,
    *,
    dry_run: bool,
    say: Callable[[str], None],
    on_calibration: OnProgress,
    on_setting: OnSetting = lambda done, total: None,
) -> Job:
    """Decides everything about compressing ``names`` but which of their segments are encoded.

    A calibration that is missing is made, and put into the store, unless ``dry_run``; ``say`` gets a line
    about it, ``on_calibration`` its progress; ``on_setting`` that of settings that are measured. Raises ``UsageError`` as
    ``compress`` says.
    """
    loaded = _model(request, store, names, model, dry_run)
    make = None if dry_run else maker(store, loaded, say, on_calibration)
    find = finder(store, names, request.calibration, make)
    pipeline, setting, preset = _pipeline(request, store, names, find, loaded, say, on_setting)
    if request.calibration is not None and not pipeline.calibrations:
        raise UsageError("--calibration", f"recipe {request.recipe!r} takes none", "leave it out")
    if not _is_collected(store, names, request.source, pipeline.needs):
        refuse_unmet(request.recipe, pipeline, loaded)
    if any(one.digest not in store.calibrations and is_bundled(one) for one in pipeline.calibrations):
        say(READY)
    record = {**request.record, "pipeline": pipeline.to_config()}
    return Job(request.variant, request.source, pipeline, record, loaded, setting, preset)


def is_uncalibrated(request: Request, store: Store, names: Sequence[str]) -> bool:
    """Whether the recipe's calibration has still to be made, so that no document can have the variant."""
    if not is_recipe(request.recipe):
        return False
    recipe = recipe_of(request.recipe)
    if not recipe.needs_calibration(request.parameters):
        return False
    try:
        finder(store, names, request.calibration)(recipe)
    except MissingCalibration:
        return True
    return False


def _model(
    request: Request, store: Store, names: Sequence[str], model: ModelSource, dry_run: bool
) -> Model | None:
    """The model that was given, or one that is loaded if it is needed."""
    if isinstance(model, Model):
        return model
    if (model is None and dry_run) or not _needs_model(request, store, names):
        return None
    return _embedded_model(store, names) if model is None else model()


def _needs_model(request: Request, store: Store, names: Sequence[str]) -> bool:
    try:
        needs = request.pipeline(finder(store, names, request.calibration)).needs
    except MissingCalibration:
        return True
    return request.needs_model or not _is_collected(store, names, request.source, needs)


def _is_collected(store: Store, names: Iterable[str], source: str, needs: Collection[str]) -> bool:
    """Whether the store holds all of ``needs`` of each segment of ``names``, or nothing is needed."""
    with suppress(KvtoolError):
        refs = (
            SegmentRef(name, index, source) for name in names for index in range(len(store[name].segments))
        )
        return not needs or all(holds_inputs(store, ref, needs) for ref in refs)
    return False


def _embedded_model(store: Store, names: Iterable[str]) -> Model | None:
    """The model that ``load_model`` gives where none is named, if it prefilled any of the documents."""
    try:
        model = load_model()
    except KvtoolError:
        return None
    fingerprints = (store[name].model["fingerprint"] for name in names if name in store)
    return model if model.fingerprint in fingerprints else None


def _pipeline(
    request: Request,
    store: Store,
    names: Sequence[str],
    find: FindCalibration,
    model: Model | None,
    say: Callable[[str], None],
    on_setting: OnSetting,
) -> tuple[Pipeline, Setting | Choice | None, ChosenPreset | None]:
    """The pipeline, the setting if one was searched for, and the preset if one decides it."""
    if request.preset is not None:
        return _preset_pipeline(request, request.preset, find)
    if not request.is_targeted:
        return request.pipeline(find), None, None
    if request.calibration is None and (pipeline := _pipeline_of_same_request(request, store, names)):
        return pipeline, None, None
    default = request.pipeline(find)
    if not _is_collected(store, names, request.source, default.needs):
        refuse_unmet(request.recipe, default, model)
    build = partial(request.pipeline, find)
    if (space := request.space) is not None:
        choice = find_choice(request.wanted, space, build, store, names, model, say, on_setting)
        return build(**choice.parameters), choice, None
    assert request.target is not None
    setting = find_setting(request.target, request.recipe, build, store, names, model)
    return build(**setting.parameter), setting, None


def _preset_pipeline(
    request: Request, preset: str, find: FindCalibration
) -> tuple[Pipeline, None, ChosenPreset | None]:
    recipe, pipeline = recipe_of(request.recipe), request.pipeline(find)
    used = [one for one in pipeline.calibrations if one.method == recipe.calibration]
    # Where both sides are of other recipes, this one has no part in it.
    if recipe.calibration and not used:
        return pipeline, None, None
    try:
        chosen = choose_preset(recipe, preset, next(iter(used), None), otherwise=request.beside_preset)
    except CodecError as error:
        raise UsageError(None, error) from error
    return request.pipeline(find, **{chosen.parameter: chosen.setting}), None, chosen


def _pipeline_of_same_request(request: Request, store: Store, names: Sequence[str]) -> Pipeline | None:
    """The pipeline of a variant that was asked for in the same words, if any document of the same models has one."""
    record = {**request.record, "pipeline": None}
    models, asked = set(), set(names)
    for name in dict.fromkeys([*names, *store]):
        with suppress(KvtoolError):
            document = store[name]
            if name in asked:
                models.add(document.model["fingerprint"])
            elif document.model["fingerprint"] not in models:
                continue
            for segment in document.segments:
                existing = segment.variants.get(request.variant)
                if existing and {**existing.recipe, "pipeline": None} == record:
                    return Pipeline.from_config(existing.recipe["pipeline"], store.calibrations)
    return None
