"""kvtool eval: measure what compression costs on the user's own documents."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_recipes
from kvtool.commands.measurement import report_file
from kvtool.commands.options import (
    AsJson,
    DocumentNames,
    DryRun,
    Fresh,
    ModelFlags,
    Seed,
    given,
    load_model,
    measured,
    numbers,
    split,
    with_settings,
)
from kvtool.counts import counted
from kvtool.errors import DONE, GATE

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.evaluation.plan import Plan
    from kvtool.evaluation.result import Evaluation


@with_settings(ModelFlags)
def run(
    names: DocumentNames = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R1,R2,…",
            help="Compare these: RECIPE or RECIPE:PARAMETER=VALUE:…, separated by commas (default: the variants "
            "that the documents have).",
            autocompletion=complete_recipes,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Ask the questions in this file of JSON lines: {"document": …, "question": …} or '
            '{"document": …, "turns": […]}.',
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="Measure some of kl,retrieval,answers,times (default: all).")
    ] = None,
    documents: Annotated[int | None, measured("documents", 12)] = None,
    context: Annotated[int | None, measured("context", 2048)] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Predict this many tokens after the cached ones (default: 256).")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N,…",
            help="Build haystacks of these lengths in tokens (default: those of 512,1024,2048 that are possible).",
        ),
    ] = None,
    haystacks: Annotated[int | None, measured("haystacks", 2)] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Compare this many tokens of each answer (default: 48).")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Time this many rounds (default: 3).")] = None,
    seed: Seed = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report to this file, as one page.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file of --html.")] = False,
    fresh: Fresh = False,
    max_kl: Annotated[float | None, typer.Option(help="Fail if KL is above this, in nats per token.")] = None,
    max_dnll: Annotated[
        float | None, typer.Option(help="Fail if dNLL is above this, in nats per token.")
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Fail if a smaller share of next tokens is the same as raw's.")
    ] = None,
    min_retrieval: Annotated[
        float | None, typer.Option(help="Fail if a smaller share of raw's right answers is kept.")
    ] = None,
    min_answers: Annotated[
        float | None, typer.Option(help="Fail if F1 to raw's answers is below this.")
    ] = None,
    min_ratio: Annotated[
        float | None, typer.Option(help="Fail if the compression ratio to 16 bits is below this.")
    ] = None,
    max_ratio_loss: Annotated[
        float | None, typer.Option(help="Fail if a larger share of --baseline's ratio is lost.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with what an earlier --json printed.")
    ] = None,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Measure what recipes cost on your own documents: size, KL, retrieval, answers, time.

    Nothing in the store is changed. An interrupted run, started again, goes on where it stopped. With limits (--max-…,
    --min-…), recipes that exceed them are named, and the exit code is 4.
    """
    from kvtool.evaluation.evaluation import run_plan
    from kvtool.evaluation.gate import Gate, read_baseline
    from kvtool.evaluation.plan import plan
    from kvtool.measurement.scope import Scope
    from kvtool.report.table import gate as gate_lines
    from kvtool.store.open import open_store

    gate = Gate(
        max_kl=max_kl,
        max_dnll=max_dnll,
        min_top1=min_top1,
        min_retrieval=min_retrieval,
        min_answers=min_answers,
        min_ratio=min_ratio,
        max_ratio_loss=max_ratio_loss,
        baseline=read_baseline(baseline) if baseline else None,
    )
    scope = Scope(
        **given(
            metrics=split(metrics),
            documents=documents,
            context=context,
            tokens=tokens,
            lengths=numbers("--lengths", lengths, "512,1024,2048"),
            haystacks=haystacks,
            answer_tokens=answer_tokens,
            repeats=repeats,
            seed=seed,
        )
    )
    if html is not None:
        from kvtool.report.page import require

        require()
        report_file.check("--html", html, replace)
    model = load_model(settings)
    store = open_store(settings.store, existing=True)
    planned = plan(store, names or None, model, split(recipes), questions, scope, gate, fresh=fresh)
    for line in render_plan(planned):
        output.note(line)
    if dry_run:
        return DONE
    with output.Bar("evaluating") as bar:
        evaluation = run_plan(
            planned,
            command=shlex.join(["kvtool", *sys.argv[1:]]),
            on_progress=lambda p: bar.update(p.done, p.total, "tokens"),
        )
    for line in evaluation.json["notes"][len(planned.notes) :]:
        output.note(line)
    output.emit(evaluation.json, render(evaluation), as_json)
    if as_json:
        for line in gate_lines([check.to_json() for check in evaluation.failed]):
            output.alert(line)
    if html is not None:
        write_page(html, evaluation.json)
    return GATE if evaluation.failed else DONE


def render(evaluation: Evaluation) -> output.Lines:
    from kvtool.report.table import table

    return output.Lines(table(evaluation.json).splitlines())


def render_plan(plan: Plan) -> list[str]:
    from kvtool.report.text import printable

    kinds = [context.kind for context in plan.contexts]
    labels = {"text": "segment", "needles": "haystack"}
    parts = [counted(kinds.count(kind), label) for kind, label in labels.items() if kind in kinds]
    if plan.questions:
        turns = sum(len(question.turns) for _, questions in plan.questions for question in questions)
        parts.append(counted(turns, "question"))
    summary = f"{counted(len(plan.runner.candidates), 'candidate')}, raw among them, on {', '.join(parts)}"
    return [summary, *map(printable, plan.notes)]


def write_page(path: Path, evaluation: dict[str, Any]) -> None:
    """Writes the report of an evaluation, and says where it is."""
    from kvtool.report.page import page
    from kvtool.system.files import write_atomic

    write_atomic(path, [page(evaluation).encode()])
    output.note(f"report: {path}")
