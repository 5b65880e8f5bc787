"""The gates of a project's variants: measured together, each checked against its own limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtool.evaluation.candidates import variants_of
from kvtool.evaluation.evaluation import run_plan
from kvtool.evaluation.gate import METRICS, Gate
from kvtool.evaluation.plan import plan
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
    variants: Sequence[str],
    model: Model,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An evaluation of ``variants`` over the documents ``names``, and the checks of their limits, as JSON.

    Raises ``UsageError`` for a limit that cannot be measured.
    """
    limits: dict[str, dict[str, Any]] = {name: project.by_name[name].gate.given for name in variants}
    wanted = {METRICS[limit] for own in limits.values() for limit in own if limit in METRICS}
    # Something is measured even where only bytes are limited.
    scope = Scope(metrics=tuple(sorted(wanted or {"kl"})), **project.measure.given)
    candidates = variants_of(store, names, variants)
    questions = project.measure.questions if "answers" in wanted else None
    planned = plan(store, list(names), model, [], questions, scope, Gate(), candidates, leaves_out_short=True)
    evaluation = run_plan(planned, command=COMMAND, on_progress=on_progress).json
    checks = [
        check.to_json()
        for name, own in limits.items()
        for check in Gate(**own).checks([one for one in evaluation["candidates"] if one["name"] == name])
    ]
    return {**evaluation, "gate": checks}, checks
