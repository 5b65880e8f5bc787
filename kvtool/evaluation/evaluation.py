"""An evaluation: everything that is planned, measured and summed up."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kvtool.engines import transformers as engine
from kvtool.errors import KvtoolError, UsageError
from kvtool.evaluation.candidates import Candidate
from kvtool.evaluation.conversations import converse, histories, with_prompts
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.plan import Plan, plan
from kvtool.evaluation.questions import Asked
from kvtool.evaluation.run import OnProgress, Progress
from kvtool.evaluation.summary import Measured, candidate_summary, is_finite
from kvtool.evaluation.timing import times
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context, Place
from kvtool.measurement.scope import Scope
from kvtool.model.model import Model
from kvtool.store.base import Store

FORMAT = 1

TRIAL_TOKENS = 64
"""Tokens of the first context on which every candidate is tried before anything long starts."""


def evaluate(
    store: Store,
    names: str | Sequence[str] | None = None,
    *,
    model: Model,
    recipes: Sequence[str] | None = None,
    questions: str | Path | None = None,
    scope: Scope | None = None,
    gate: Gate | None = None,
    others: Sequence[Candidate] = (),
    fresh: bool = False,
    command: str = "kvtool.evaluate(…)",
    on_progress: OnProgress = lambda _: None,
) -> dict[str, Any]:
    """What compressing ``names`` (default: all documents) by ``recipes`` costs, as JSON.

    ``recipes`` are names with parameters, such as ``kivi:bits=4``; by default the variants that the documents have.
    ``others`` are compared too. ``questions`` is a file of the user's own. What an earlier run measured is used again
    unless ``fresh``; times are always measured.

    Raises ``UsageError``, ``StoreError``, ``MismatchError`` or ``ModelError`` before anything long starts.
    """
    planned = plan(store, names, model, recipes, questions, scope or Scope(), gate or Gate(), others, fresh)
    return carry_out(planned, command=command, on_progress=on_progress)


def carry_out(plan: Plan, *, command: str, on_progress: OnProgress = lambda _: None) -> dict[str, Any]:
    """Measures what is planned, and sums it up as JSON. ``command`` is what a report says it was made by."""
    runner, measured = plan.runner, []
    runner.progress, runner.on_progress = Progress(total=plan.cost), on_progress
    told, each = None, None
    with runner.bench() as bench:
        _try_all(plan, bench)
        for context in plan.contexts:
            measured.append(Measured(context, tuple(runner.measure(bench, context))))
        for context, asked in plan.asked:
            ready = _conversations(plan, bench, context, asked)
            runner.progress.total += (ready.cost - context.cost) * len(runner.candidates)
            measured.append(Measured(ready, tuple(runner.measure(bench, ready))))
        if plan.timed:
            with bench.holding(runner.kv(plan.timed)):
                told, each = times(
                    bench, plan.timed, runner.candidates, plan.scope.repeats, runner.turn(plan.timed)
                )
    return _evaluation(plan, measured, told, each, command)


def _conversations(plan: Plan, bench: Bench, context: Context, asked: Sequence[Asked]) -> Context:
    """``context`` with its prompts, for which earlier turns have to be answered first."""
    runner = plan.runner
    answers = histories(runner.model, runner.prefix, context, asked, plan.scope, fresh=runner.fresh)
    if answers is None:
        with bench.holding(runner.kv(context)):
            answers = converse(bench, context, asked, plan.scope)
    return with_prompts(runner.model, runner.prefix, context, asked, answers, plan.scope)


def _try_all(plan: Plan, bench: Bench) -> None:
    """What a candidate cannot do with this model is found on a few tokens, not after an hour."""
    first = next(iter([*plan.contexts, *(context for context, _ in plan.asked)]))
    tried = replace(first, token_ids=first.token_ids[:TRIAL_TOKENS])
    with bench.holding(plan.runner.kv(tried)):
        for candidate in plan.runner.candidates:
            try:
                candidate.restore(bench)
            except KvtoolError as error:
                raise UsageError(
                    candidate.name, f"cannot be used with {plan.runner.model.name}: {error}"
                ) from error


def _evaluation(
    plan: Plan,
    measured: Sequence[Measured],
    told: dict[str, Any] | None,
    each: Sequence[dict[str, Any]] | None,
    command: str,
) -> dict[str, Any]:
    runner, model = plan.runner, plan.runner.model
    found = [candidate_summary(n, c, measured) for n, c in enumerate(runner.candidates)]
    for summary, own in zip(found, each or [], strict=False):
        summary["times"] = own
    notes = list(plan.notes)
    for n, candidate in enumerate(runner.candidates):
        if not all(is_finite(one.records[n]) for one in measured):
            notes.append(
                f"{candidate.name}: its cache, or what is predicted over it, is not made of numbers (NaN)."
            )
    if found[0]["retrieval"] and not found[0]["retrieval"]["score"]["value"]:
        notes.append("Retrieval tells nothing: the model finds none of the needles over the raw cache.")
    if runner.progress.kept:
        notes.append(
            f"{runner.progress.kept} measurements were kept from an earlier run (--fresh measures anew)."
        )
    geometry = runner.store.open(plan.places[0].document).contents.geometry
    evaluation: dict[str, Any] = {
        "format": FORMAT,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kvtool": version("kvtool"),
        "machine": machine(model),
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "dtype": model.dtype_name,
            "layers": len(geometry.layers),
            "kv_heads": geometry.layers[0].keys[0],
        },
        "settings": {name: _listed(value) for name, value in asdict(plan.scope).items()},
        "documents": [_document(place, measured) for place in _places(plan, measured)],
        "candidates": found,
        "times": told,
        "notes": notes,
    }
    evaluation["gate"] = plan.gate.checks(evaluation) or None
    return evaluation


def _places(plan: Plan, measured: Sequence[Measured]) -> list[Place]:
    """What was measured, and what haystacks have their text from."""
    own = [one.context.place for one in measured if one.context.place is not None]
    return list(dict.fromkeys([*(plan.places if "retrieval" in plan.scope.metrics else []), *own]))


def _document(place: Place, measured: Sequence[Measured]) -> dict[str, Any]:
    """What was cached and predicted of a segment; of one that was only asked about or gave text to haystacks, 0."""
    own = [one.context for one in measured if one.context.place == place and one.context.kind == "text"]
    return {
        "name": place.document,
        "segment": place.segment,
        "cached_tokens": sum(len(context.token_ids) for context in own),
        "fed_tokens": sum(len(context.fed) for context in own),
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def machine(model: Model) -> dict[str, Any]:
    """What the figures were made on."""
    import transformers

    return {
        "system": platform.system(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": str(engine.device_of(model)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
