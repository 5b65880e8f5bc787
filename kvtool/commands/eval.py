"""kvtool eval: what compression costs, on the user's own documents."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kvtool.commands import common
from kvtool.errors import DONE, GATE

if TYPE_CHECKING:
    from kvtool.evaluation.plan import Plan

Limit = Optional[float]


def run(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Documents (default: all).", metavar="[NAME…]")
    ] = None,
    recipes: Annotated[
        Optional[list[str]],
        typer.Option(
            "--recipes",
            help="What to compare: RECIPE or RECIPE:PARAMETER=VALUE:…, separated by commas (default: the variants "
            "that the documents have).",
            metavar="R1,R2,…",
        ),
    ] = None,
    questions: Annotated[
        Optional[Path],
        typer.Option(
            "--questions",
            help='JSON lines: {"document": …, "question": …} or {"document": …, "turns": […]}.',
            metavar="FILE",
        ),
    ] = None,
    metrics: Annotated[
        Optional[list[str]],
        typer.Option("--metrics", help="Some of kl,retrieval,answers,times (default: all)."),
    ] = None,
    documents: Annotated[
        Optional[int],
        typer.Option(
            "--documents", help="Segments that are looked at, drawn if there are more (default: 12)."
        ),
    ] = None,
    context: Annotated[
        Optional[int],
        typer.Option("--context", help="Tokens of a document that are cached, at most (default: 2048)."),
    ] = None,
    tokens: Annotated[
        Optional[int], typer.Option("--tokens", help="Tokens behind them that are predicted (default: 256).")
    ] = None,
    lengths: Annotated[
        Optional[list[str]],
        typer.Option(
            "--lengths",
            help="Tokens of the haystacks (default: of 512,1024,2048 those that can be).",
            metavar="N,N,…",
        ),
    ] = None,
    haystacks: Annotated[
        Optional[int], typer.Option("--haystacks", help="Haystacks of each kind and length (default: 2).")
    ] = None,
    answer_tokens: Annotated[
        Optional[int],
        typer.Option("--answer-tokens", help="Tokens of an answer that are compared (default: 48)."),
    ] = None,
    repeats: Annotated[
        Optional[int], typer.Option("--repeats", help="Rounds that are timed (default: 3).")
    ] = None,
    seed: Annotated[
        Optional[int], typer.Option("--seed", help="Draws documents and needles (default: 0).")
    ] = None,
    html: Annotated[
        Optional[Path], typer.Option("--html", help="Write the report as one page.", metavar="FILE")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file of --html.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure anew what an earlier run has measured.")
    ] = False,
    max_kl: Annotated[Limit, typer.Option("--max-kl", help="Gate: KL in nats per token, at most.")] = None,
    max_dnll: Annotated[
        Limit, typer.Option("--max-dnll", help="Gate: dNLL in nats per token, at most.")
    ] = None,
    min_top1: Annotated[
        Limit, typer.Option("--min-top1", help="Gate: share of equal next tokens, at least.")
    ] = None,
    min_retrieval: Annotated[
        Limit, typer.Option("--min-retrieval", help="Gate: share of raw's right answers kept, at least.")
    ] = None,
    min_answers: Annotated[
        Limit, typer.Option("--min-answers", help="Gate: F1 to raw's answers, at least.")
    ] = None,
    min_ratio: Annotated[
        Limit, typer.Option("--min-ratio", help="Gate: compression ratio to 16 bits, at least.")
    ] = None,
    max_ratio_loss: Annotated[
        Limit, typer.Option("--max-ratio-loss", help="Gate: share of --baseline's ratio lost, at most.")
    ] = None,
    baseline: Annotated[
        Optional[Path], typer.Option("--baseline", help="What an earlier --json printed.", metavar="FILE")
    ] = None,
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
    dry_run: common.DryRunOption = False,
    as_json: common.JsonOption = False,
) -> int:
    """Measure what recipes cost on your own documents: size, KL, retrieval, answers, time.

    Nothing in the store is changed. A run that was interrupted goes on where it stopped. With a gate's limits, a
    recipe that does not keep them is named, and the exit code is 4.
    """
    from kvtool.config import settings
    from kvtool.evaluation.evaluation import run_plan
    from kvtool.evaluation.gate import Gate, read_baseline
    from kvtool.evaluation.plan import plan
    from kvtool.measurement.scope import Scope
    from kvtool.report.table import gate as gate_lines
    from kvtool.report.table import table
    from kvtool.store.open import open_store

    chosen = settings(store=store, model=model, device=device, dtype=dtype, load_in=load_in, adapter=adapter)
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
    given = {
        "metrics": _split(metrics),
        "documents": documents,
        "context": context,
        "tokens": tokens,
        "lengths": _numbers(lengths),
        "haystacks": haystacks,
        "answer_tokens": answer_tokens,
        "repeats": repeats,
        "seed": seed,
    }
    scope = Scope(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if html is not None:
        _refuse_page(html, replace)
    planned = plan(
        open_store(chosen.store),
        names or None,
        common.load_model(chosen),
        _split(recipes),
        questions,
        scope,
        gate,
        fresh=fresh,
    )
    _say_plan(planned)
    if dry_run:
        return DONE
    with common.Bar("evaluating") as bar:
        evaluation = run_plan(
            planned,
            command=shlex.join(["kvtool", *sys.argv[1:]]),
            on_progress=lambda p: bar.update(p.done, p.total, "tokens"),
        )
    for note in evaluation.notes[len(planned.notes) :]:
        common.say(note)
    if as_json:
        common.print_json(evaluation.to_json())
        for line in gate_lines([check.to_json() for check in evaluation.failed]):
            common.say(line)
    else:
        typer.echo(table(evaluation.to_json()))
    if html is not None:
        _write_page(html, evaluation.to_json())
    return GATE if evaluation.failed else DONE


def _say_plan(plan: Plan) -> None:
    from kvtool.report.text import printable

    kinds = [context.kind for context in plan.contexts]
    parts = [
        f"{kinds.count(kind)} {what}"
        for kind, what in (("text", "segments"), ("needles", "haystacks"))
        if kind in kinds
    ]
    if plan.questions:
        turns = sum(len(one.turns) for _, questions in plan.questions for one in questions)
        parts.append(f"{turns} questions")
    common.say(f"{len(plan.runner.candidates)} candidates, raw among them, on {', '.join(parts)}")
    for note in plan.notes:
        common.say(printable(note))


def _refuse_page(path: Path, replace: bool) -> None:
    from kvtool.errors import UsageError
    from kvtool.report.page import require

    require()
    if path.exists() and not replace:
        raise UsageError(f"--html {path}", "is there already", "give another name, or --replace it")
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a directory" if path.is_dir() else f"{path.parent} is no directory"
        raise UsageError(f"--html {path}", what, "name a file in a directory that is there")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--html {path}", f"{path.parent} cannot be written to", "name another directory")


def _write_page(path: Path, evaluation: dict[str, Any]) -> None:
    from kvtool.report.page import page
    from kvtool.system.files import write_atomic

    write_atomic(path, [page(evaluation).encode()])
    common.say(f"report: {path}")


def _split(texts: list[str] | None) -> tuple[str, ...] | None:
    if texts is None:
        return None
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def _numbers(texts: list[str] | None) -> tuple[int, ...] | None:
    from kvtool.errors import UsageError

    parts = _split(texts)
    if parts is None:
        return None
    for part in parts:
        if not (part.isascii() and part.isdigit()):
            raise UsageError(
                f"--lengths {part}", "is no number of tokens", "expected numbers as in 512,1024,2048"
            )
    return tuple(int(part) for part in parts)
