"""An evaluation: everything that is planned is measured and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvtool.errors import KvtoolError, UsageError
from kvtool.evaluation.candidates import Candidate
from kvtool.evaluation.conversations import hold_conversations, recall_answers, with_prompts
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.plan import Plan, plan
from kvtool.evaluation.questions import UserQuestion
from kvtool.evaluation.result import Evaluation, result
from kvtool.evaluation.run import OnProgress, Progress, Runner
from kvtool.evaluation.summary import Measured
from kvtool.evaluation.timing import Times, measure_times
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context
from kvtool.measurement.scope import Scope
from kvtool.model.model import Model
from kvtool.store.base import Store

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
    """Measures what compressing ``names`` (default: all documents) by ``recipes`` costs. Returns JSON.

    ``recipes`` are names with parameters, such as ``kivi:bits=4``; by default the variants that the documents have.
    ``others`` are compared too. ``questions`` is a file of the user's own. Measurements of an earlier run are used again
    unless ``fresh``; times are always measured.

    Raises ``UsageError``, ``StoreError``, ``MismatchError`` or ``ModelError`` before anything long starts.
    """
    planned = plan(store, names, model, recipes, questions, scope or Scope(), gate or Gate(), others, fresh)
    return run_plan(planned, command=command, on_progress=on_progress).json


def run_plan(plan: Plan, *, command: str, on_progress: OnProgress = lambda _: None) -> Evaluation:
    """Measures what is planned. ``command`` is shown in the report as the command that made it."""
    runner = plan.runner
    measured: list[Measured] = []
    times: Times | None = None
    with runner.bench() as bench:
        _try_candidates(plan, bench)
        runner.progress, runner.on_progress = Progress(total=plan.cost), on_progress
        for context in plan.contexts:
            measured.append(Measured(context, tuple(runner.measure(bench, context))))
        for context, questions in plan.questions:
            prompted = _with_conversations(plan, bench, context, questions)
            runner.progress.total += (prompted.cost - context.cost) * len(runner.candidates)
            measured.append(Measured(prompted, tuple(runner.measure(bench, prompted))))
        if plan.timed:
            with bench.holding(runner.kv(plan.timed)):
                on_timed = runner.timed(plan.timed)
                times = measure_times(bench, plan.timed, runner.candidates, plan.scope.repeats, on_timed)
    return result(plan, measured, times, command)


def _with_conversations(
    plan: Plan, bench: Bench, context: Context, questions: Sequence[UserQuestion]
) -> Context:
    """``context`` with its prompts. The turns before a question have to be answered first."""
    answers = recall_answers(bench, context, questions, plan.scope, fresh=plan.runner.fresh)
    if answers is None:
        with bench.holding(plan.runner.kv(context)):
            answers = hold_conversations(bench, context, questions, plan.scope)
    return with_prompts(bench, context, questions, answers, plan.scope)


def _try_candidates(plan: Plan, bench: Bench) -> None:
    """Restores every candidate on a few tokens, so that an unusable one is named at once and not after an hour.

    Recipes that always keep some tokens may have no room for their share of so few, so what fails is tried on a whole context.
    """
    first = plan.all_contexts[0]
    short = replace(first, token_ids=first.token_ids[:TRIAL_TOKENS])
    failed = _failed(plan.runner, bench, short, plan.runner.candidates)
    if failed:
        failed = _failed(plan.runner, bench, first, [candidate for candidate, _ in failed])
    for candidate, error in failed:
        reason = f"cannot be used with {plan.runner.model.name}: {error}"
        if not plan.leaves_out_unusable:
            raise UsageError(candidate.name, reason) from error
        plan.notes.append(f"{candidate.name} is left out: it {reason}.")
    unusable = {candidate.name for candidate, _ in failed}
    plan.runner.candidates = [one for one in plan.runner.candidates if one.name not in unusable]


def _failed(
    runner: Runner, bench: Bench, context: Context, candidates: Sequence[Candidate]
) -> list[tuple[Candidate, KvtoolError]]:
    """Those of ``candidates`` that cannot be restored on ``context``, and why."""
    failed: list[tuple[Candidate, KvtoolError]] = []
    with bench.holding(runner.kv(context)):
        for candidate in candidates:
            try:
                candidate.restore(bench)
            except KvtoolError as error:
                failed.append((candidate, error))
    return failed
