"""The gates of a project's variants and blends: measured together, each checked against its own limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvtool.blending.blend import BlendOptions
from kvtool.evaluation.blends import Blend, measure_blends
from kvtool.evaluation.candidates import variants_of
from kvtool.evaluation.evaluation import run_plan
from kvtool.evaluation.gate import METRICS, Gate
from kvtool.evaluation.plan import plan
from kvtool.evaluation.result import conditions
from kvtool.evaluation.run import OnProgress
from kvtool.measurement.scope import Scope
from kvtool.model.model import Model
from kvtool.pipeline.project import Project
from kvtool.store.base import Store

COMMAND = "kvtool build"


def evaluate_gates(
    project: Project,
    store: Store,
    names: Sequence[str],
    due: Sequence[str],
    model: Model,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An evaluation over the documents ``names`` of the variants and blends ``due``, and the checks of their limits, as JSON.

    Its ``candidates`` are empty where no variant is due, and its ``blends`` where no blend is. Raises ``UsageError`` for a limit
    that cannot be measured.
    """
    limits: dict[str, dict[str, Any]] = {name: project.gates[name] for name in due}
    blends = [name for name in due if name in project.blends_by_name]
    variants = [name for name in due if name not in blends]
    evaluation = (
        _variants(project, store, names, {name: limits[name] for name in variants}, model, on_progress)
        if variants
        else {
            **conditions(model, store, names, _scope(project, ()), COMMAND),
            "documents": [],
            "candidates": [],
            "times": None,
            "notes": [],
        }
    )
    if blends:
        measured, notes = _blends(project, store, names, blends, model, on_progress)
        evaluation = {**evaluation, "blends": measured, "notes": [*evaluation["notes"], *notes]}
    subjects = [*evaluation["candidates"], *evaluation.get("blends", ())]
    checks = [
        check.to_json()
        for name, own in limits.items()
        for check in Gate(**own).checks([one for one in subjects if one["name"] == name])
    ]
    return {**evaluation, "gate": checks}, checks


def _variants(
    project: Project,
    store: Store,
    names: Sequence[str],
    limits: Mapping[str, Mapping[str, float]],
    model: Model,
    on_progress: OnProgress,
) -> dict[str, Any]:
    wanted = {METRICS[limit] for own in limits.values() for limit in own if limit in METRICS}
    candidates = variants_of(store, names, list(limits))
    questions = project.measure.questions if "answers" in wanted else None
    planned = plan(
        store,
        list(names),
        model,
        [],
        questions,
        _scope(project, wanted),
        Gate(),
        candidates,
        leaves_out_short=True,
    )
    return run_plan(planned, command=COMMAND, on_progress=on_progress).json


def _blends(
    project: Project,
    store: Store,
    names: Sequence[str],
    wanted: Sequence[str],
    model: Model,
    on_progress: OnProgress,
) -> tuple[list[dict[str, Any]], list[str]]:
    by_name = project.blends_by_name
    blends = [Blend(name, by_name[name].variant, BlendOptions(**by_name[name].given)) for name in wanted]
    questions = project.measure.questions
    return measure_blends(store, names, model, blends, questions, _scope(project, ()), on_progress)


def _scope(project: Project, metrics: Iterable[str]) -> Scope:
    # Something is measured even where only bytes are limited.
    return Scope(metrics=tuple(sorted(metrics)) or ("kl",), **project.measure.given)
