"""A gate for CI: limits that every candidate has to keep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kvtool.errors import UsageError
from kvtool.measurement.scope import Scope

METRICS = {
    "max_kl": "kl",
    "max_dnll": "kl",
    "min_top1": "kl",
    "min_retrieval": "retrieval",
    "min_answers": "answers",
}
"""The metric that must be measured for a limit."""


@dataclass(frozen=True)
class Check:
    """One limit on one candidate. ``value`` is None where nothing was measured; ``low``, ``high`` and ``n`` are None for
    what is counted and not estimated.

    A check is ``significant`` if the limit lies outside the 95 % interval: then noise cannot have decided it.
    """

    candidate: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    limit: float
    passed: bool
    significant: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Gate:
    """Limits on each recipe, None for no limit.

    ``min_retrieval`` is on the share kept of the raw cache's right answers. ``max_ratio_loss`` is on the share of the
    compression ratio lost since ``baseline``, which has the ratios of an earlier evaluation.
    """

    max_kl: float | None = None
    max_dnll: float | None = None
    min_top1: float | None = None
    min_retrieval: float | None = None
    min_answers: float | None = None
    min_ratio: float | None = None
    max_ratio_loss: float | None = None
    baseline: Mapping[str, float] | None = None

    def refuse_unmeasured(self, scope: Scope, has_questions: bool, names: Sequence[str]) -> None:
        """Raises ``UsageError`` for a limit on what is not going to be measured, of the candidates ``names``."""
        for limit, metric in METRICS.items():
            if getattr(self, limit) is not None and metric not in scope.metrics:
                flag = f"--{limit.replace('_', '-')}"
                raise UsageError(flag, f"needs the metric {metric}, which --metrics leaves out")
        if self.min_answers is not None and not has_questions:
            raise UsageError("--min-answers", "needs questions to answer", "give --questions FILE")
        if (self.max_ratio_loss is None) != (self.baseline is None):
            reason = "one says how much smaller the ratio may be, the other than what"
            raise UsageError("--max-ratio-loss and --baseline", reason, "give both")
        if self.baseline is not None and (missing := [name for name in names if name not in self.baseline]):
            reason = f"has no {', '.join(missing)}, only {', '.join(self.baseline)}"
            raise UsageError("--baseline", reason, "compare the same recipes, or make it again")

    def checks(self, candidates: Sequence[Mapping[str, Any]]) -> list[Check]:
        """Every limit against every candidate but the raw cache. ``candidates`` are an evaluation's, as JSON."""
        limits = [field.name for field in fields(self) if field.name != "baseline"]
        return [
            self._check(candidate, limit)
            for candidate in candidates
            if candidate["kind"] != "raw"
            for limit in limits
            if getattr(self, limit) is not None
        ]

    def _check(self, candidate: Mapping[str, Any], limit: str) -> Check:
        kind, _, metric = limit.partition("_")
        bound = getattr(self, limit)
        estimate = self._measured(candidate, metric) or {}
        value, low, high, n = (estimate.get(part) for part in ("value", "low", "high", "n"))
        # A limit on something that was not measured is not kept.
        passed = value is not None and (value <= bound if kind == "max" else value >= bound)
        # Bytes are counted, not estimated. One document or context says nothing of others.
        significant = n is None or (n > 1 and not low <= bound <= high)
        name = metric.replace("_", " ")
        return Check(candidate["name"], name, value, low, high, n, bound, passed, significant)

    def _measured(self, candidate: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
        """The estimate of a metric, the ``value`` alone of what is counted, None for what was not measured."""
        if metric == "ratio":
            return {"value": candidate["ratio"]}
        if metric == "ratio_loss":
            assert self.baseline is not None
            return {"value": 1 - candidate["ratio"] / self.baseline[candidate["name"]]}
        estimate: Mapping[str, Any] | None = candidate[metric]
        part = {"retrieval": "retention", "answers": "f1"}.get(metric)
        return estimate[part] if estimate and part else estimate


def read_baseline(path: Path) -> dict[str, float]:
    """Each candidate's ratio in an evaluation that ``kvtool eval --json`` printed. Raises ``UsageError``."""
    try:
        evaluation = json.loads(path.read_bytes())
        ratios = {str(c["name"]): float(c["ratio"]) for c in evaluation["candidates"]}
        if not all(0 < ratio < math.inf for ratio in ratios.values()):
            raise ValueError("a ratio is not above 0")
        return ratios
    except OSError as error:
        raise UsageError(f"--baseline {path}", f"cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        remedy = "expected what kvtool eval --json printed"
        raise UsageError(f"--baseline {path}", f"is no evaluation ({error})", remedy) from error
