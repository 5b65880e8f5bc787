"""kvtool prefill: store the KV caches of documents."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DryRun, TextFlags, load_model, with_settings
from kvtool.commands.repeats import Repeatable
from kvtool.counts import counted
from kvtool.errors import DONE, UsageError

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.documents.load import NamedBytes
    from kvtool.prefilling.report import Report


class PrefillFlags(TextFlags):
    """Choice of documents, their prefix, and the division of their tokens into segments and passes."""

    system: Annotated[
        str | None,
        typer.Option(help="Put this system prompt before each document, through the chat template."),
    ]
    prefix_file: Annotated[
        Path | None,
        typer.Option(help="Put this file's text before each document, instead of the chat template."),
    ]
    no_prefix: Annotated[bool | None, typer.Option("--no-prefix", help="Put nothing before each document.")]
    include: Annotated[
        list[str] | None,
        typer.Option(help="Take only documents whose names match, as in .gitignore; repeatable."),
    ]
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Leave out documents whose names match, as in .gitignore; repeatable."),
    ]
    segment_tokens: Annotated[
        int | None,
        typer.Option(
            help="Split documents into segments of at most this many tokens (default: what the model's context allows)."
        ),
    ]
    step_tokens: Annotated[
        int | None,
        typer.Option(help="Prefill a long document in passes of this many tokens (default: 1024)."),
    ]
    pack_tokens: Annotated[
        int | None,
        typer.Option(
            help="Prefill short documents together, in passes of up to this many tokens (default: 512)."
        ),
    ]
    neighbours: Annotated[
        int | None,
        typer.Option(
            help="Prefill each document after this many others too, and store the mean as variant averaged, for "
            "blending; 4 works well (default: 0)."
        ),
    ]
    collect: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure what these recipes need beside keys and values, so that compress runs no model; repeatable."
        ),
    ]


@with_settings(PrefillFlags)
def run(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH…", help="Prefill these files, folders or glob patterns; - reads standard input."
        ),
    ],
    *,
    settings: Settings,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace what the store holds for another model, prefix or file."),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Call what - reads so; the ending says what format it is in, such as page.html."),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Prefill documents with a model and store their KV caches.

    What is already there is skipped, by content. An interrupted run, started again, goes on where it stopped.
    """
    from kvtool.prefilling.inputs import prefill_inputs, prefill_options

    documents = _documents(paths, name)
    inputs = prefill_inputs(documents, settings)
    command = Repeatable("prefill", settings, inputs, paths=list(paths), name=name, replace=replace)
    if not dry_run and command.replay(as_json):
        return DONE

    from kvtool.model.prefill_speed import remember
    from kvtool.prefilling.prefill import prefill
    from kvtool.store.open import open_store

    store = open_store(settings.store)
    options, prefix_warnings = prefill_options(settings)
    model = load_model(settings)
    with output.Bars() as bars:
        report = prefill(
            documents,
            model=model,
            store=store,
            replace=replace,
            dry_run=dry_run,
            on_progress=lambda r: show(bars, r),
            **options,
        )
    report.warnings[:0] = prefix_warnings
    if report.model_tokens:
        remember(model.fingerprint, report.model_tokens, report.model_seconds)
    output.emit(report.to_json(), render(report), as_json)
    output.print_warnings(report.warnings)
    code = output.exit_code(report.problems, len(report.prefilled) + len(report.unchanged))
    if code == DONE and not dry_run and (after := prefill_inputs(documents, settings)):
        again = report.repeated(after["entries"])
        command.remember(after, report.entries, again.to_json(), render(again), again.warnings)
    return code


def show(bars: output.Bars, report: Report) -> None:
    if report.files_read < report.files_total:
        bars.show("planning").update(report.files_read, report.files_total, "documents")
    else:
        bars.show("prefilling").update(report.tokens, report.tokens_total, "tokens")


def _documents(paths: list[str], name: str | None) -> Sequence[str | NamedBytes]:
    """The paths, or what standard input holds in place of ``-``."""
    from kvtool.documents.load import NamedBytes
    from kvtool.documents.read import read_stream

    if "-" not in paths:
        if name is not None:
            raise UsageError("--name", "is for what - reads from standard input; files have names")
        return paths
    if len(paths) > 1:
        raise UsageError("-", "reads one document from standard input; expected no other paths")
    if not name:
        raise UsageError("-", "reads a document that has no name; expected --name, such as --name page.html")
    if not sys.stdin or sys.stdin.isatty():
        reason = "reads standard input, which is closed or the terminal"
        raise UsageError("-", reason, "pipe a document into kvtool, or name a file")
    return [NamedBytes(name, read_stream(sys.stdin.buffer, name))]


def render(report: Report) -> output.Lines:
    summary = (
        f"{'would prefill' if report.dry_run else 'prefilled'} {counted(len(report.prefilled), 'document')}"
    )
    if report.tokens:
        rate = report.tokens / report.seconds
        summary += f", {counted(report.tokens, 'token')} in {report.seconds:.1f} s ({rate:,.0f} a second)"
    if report.unchanged:
        summary += f"; {counted(len(report.unchanged), 'was there already', 'were there already')}"
    if empty := report.passed_over["empty"]:
        summary += f"; passed over {counted(empty, 'empty file')}"
    if report.averaged:
        summary += f"; {len(report.averaged)} averaged over neighbours, for blending"
    if report.collected:
        summary += f"; {len(report.collected)} measured for recipes"
    notes = [f"{summary} → {report.store}"]
    notes += [f"{name} replaced: it came from {path}" for name, path in report.replaced.items()]
    if report.without_neighbours:
        notes.append(
            f"{', '.join(report.without_neighbours)}: no neighbours that fit the model's context, so nothing was averaged for "
            "blending; run it again when there are more documents"
        )
    return output.Lines(report.prefilled if report.dry_run else [], notes)
