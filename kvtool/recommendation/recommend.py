"""Measures a dozen candidates on a few segments, and recommends one of them for each level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtool.calibration.lookup import MissingCalibration, finder
from kvtool.errors import UsageError
from kvtool.evaluation.candidates import candidate
from kvtool.evaluation.evaluation import run_plan
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.plan import Plan, plan
from kvtool.evaluation.run import OnProgress
from kvtool.measurement.scope import Scope
from kvtool.model.model import Model
from kvtool.recommendation.choose import recommendation
from kvtool.store.base import Store

CANDIDATES = (
    "lossless",
    "int8-blockwise",
    "kivi:bits=4",
    "nf4",
    "cachegen",
    "kvquant:weights=none",
    "kvtc",
    "klt:step=0.012",
    "klt:step=0.03",
    "klt:step=0.075",
    "klt:step=0.15",
)
"""Beside the raw cache. They span the range from all bits to a fifth of one."""

SCOPE = Scope(metrics=("kl", "retrieval", "times"), documents=4, context=1024, haystacks=1)
"""A few segments: enough to tell the levels apart, in minutes."""


def recommend(
    store: Store,
    names: str | Sequence[str] | None = None,
    *,
    model: Model,
    recipes: Sequence[str] | None = None,
    scope: Scope = SCOPE,
    fresh: bool = False,
    command: str = "kvtool.recommend(…)",
    on_progress: OnProgress = lambda _: None,
) -> dict[str, Any]:
    """Measures candidates on a few segments of ``names`` (default: all documents), and chooses among them. Returns JSON.

    ``recommended`` has one candidate for each of "exact", "safe" and "small", with the reason, and the command that makes
    it. It is chosen from the frontier of bytes, KL, retrieval and load time. ``recipes`` are as for ``evaluate``; by
    default a dozen, without those that need a calibration that the store does not have, and those that the model cannot
    use. Measurements of an earlier run are used again unless ``fresh``.

    Raises what ``evaluate`` raises.
    """
    planned = plan_candidates(store, names, model, recipes, scope, fresh)
    evaluation = run_plan(planned, command=command, on_progress=on_progress).json
    return recommendation(evaluation, [names] if isinstance(names, str) else names or ())


def plan_candidates(
    store: Store,
    names: str | Sequence[str] | None,
    model: Model,
    recipes: Sequence[str] | None = None,
    scope: Scope = SCOPE,
    fresh: bool = False,
) -> Plan:
    """The plan of the evaluation. Its notes say which of the default candidates are left out."""
    if not {"kl", "times"} <= set(scope.metrics):
        raise UsageError("metrics", "a recommendation needs kl and times", "add them")
    documents = [names] if isinstance(names, str) else list(store if names is None else names)
    texts, missing = (
        (recipes, []) if recipes is not None or not documents else _with_calibration(store, documents)
    )
    planned = plan(store, names, model, texts, None, scope, Gate(), fresh=fresh)
    planned.leaves_out_unusable = recipes is None
    planned.notes += [
        f"{name} is left out: the store has no calibration for it. Run kvtool calibrate --recipe {name} first."
        for name in missing
    ]
    return planned


def _with_calibration(store: Store, documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the default candidates that can be made now, and the recipes that need a calibration first."""
    find = finder(store, documents)
    texts: list[str] = []
    missing: dict[str, None] = {}
    for text in CANDIDATES:
        try:
            candidate(text, find)
        except MissingCalibration:
            missing[text.split(":")[0]] = None
        else:
            texts.append(text)
    return texts, list(missing)
