"""The result of an evaluation, which the reports are made from."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
import transformers

from kvtool.engines import transformers as engine
from kvtool.evaluation.gate import Check
from kvtool.evaluation.plan import Plan
from kvtool.evaluation.summary import Measured, candidate_summary, is_finite
from kvtool.evaluation.timing import Times
from kvtool.formats import FORMATS
from kvtool.model.model import Model
from kvtool.store.segments import SegmentRef

FORMAT = FORMATS["evaluation"].number


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured, as JSON whose ``candidates`` begin with the raw cache, and the gate's checks."""

    json: dict[str, Any]
    checks: Sequence[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def result(plan: Plan, measured: Sequence[Measured], times: Times | None, command: str) -> Evaluation:
    """Sums up the records of ``measured``. ``command`` is what made them."""
    candidates = [candidate_summary(n, c, measured) for n, c in enumerate(plan.runner.candidates)]
    if times:
        for summary, candidate_times in zip(candidates, times.candidates, strict=True):
            summary["times"] = candidate_times
    checks = plan.gate.checks(candidates)
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(plan.scope).items()}
    json = {
        "format": FORMAT,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kvtool": version("kvtool"),
        "machine": machine(plan.runner.model),
        "model": _model(plan),
        "settings": settings,
        "documents": [_document(ref, measured) for ref in _segments(plan, measured)],
        "candidates": candidates,
        "times": times.conditions if times else None,
        "notes": [*plan.notes, *_notes(plan, measured, candidates)],
        "gate": [check.to_json() for check in checks] or None,
    }
    return Evaluation(json, checks)


def machine(model: Model) -> dict[str, Any]:
    """The machine and the libraries that the figures were measured with."""
    return {
        "system": platform.system(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": str(engine.device_of(model)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _model(plan: Plan) -> dict[str, Any]:
    model = plan.runner.model
    geometry = plan.runner.store.open(plan.segments[0].document).contents.geometry
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "dtype": model.dtype_name,
        "layers": len(geometry.layers),
        "kv_heads": geometry.layers[0].keys[0],
    }


def _notes(plan: Plan, measured: Sequence[Measured], candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes for readers of the figures, further to those of the plan."""
    notes = [
        f"{candidate.name}: its cache, or what is predicted over it, is not made of numbers (NaN)."
        for n, candidate in enumerate(plan.runner.candidates)
        if not all(is_finite(one.records[n]) for one in measured)
    ]
    retrieval = candidates[0]["retrieval"]
    if retrieval and not retrieval["score"]["value"]:
        notes.append("Retrieval tells nothing: the model finds none of the needles over the raw cache.")
    if kept := plan.runner.progress.kept:
        notes.append(f"{kept} measurements were kept from an earlier run (--fresh measures anew).")
    return notes


def _segments(plan: Plan, measured: Sequence[Measured]) -> list[SegmentRef]:
    """The segments that were measured, and those that gave text to haystacks."""
    refs = [one.context.segment for one in measured if one.context.segment]
    return list(dict.fromkeys([*(plan.segments if "retrieval" in plan.scope.metrics else []), *refs]))


def _document(ref: SegmentRef, measured: Sequence[Measured]) -> dict[str, Any]:
    """Tokens of a segment that were cached and predicted. Both are 0 where it only had questions or gave text to haystacks."""
    contexts = [one.context for one in measured if one.context.segment == ref and one.context.kind == "text"]
    return {
        "name": ref.document,
        "segment": ref.segment,
        "cached_tokens": sum(len(context.token_ids) for context in contexts),
        "predicted_tokens": sum(len(context.fed) for context in contexts),
    }
