"""What kvtool push and kvtool pull share: flags, and what they say in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_variants
from kvtool.counts import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvtool.store.transfer.transfer import Report

OneVariant = Annotated[
    str | None,
    typer.Option(
        help="Copy only this variant: raw, klt, … (default: all).", autocompletion=complete_variants
    ),
]

Decrypt = Annotated[
    bool, typer.Option("--decrypt", help="Copy from an encrypted store into one that is not encrypted.")
]


def show(bar: output.Bar) -> Callable[[Report], None]:
    """Moves ``bar`` as bytes come."""
    return lambda report: bar.update(report.nbytes / 1e6, report.nbytes_total / 1e6, "MB")


def finish(report: Report, verb: str, *, url: str, store: object, to: object, as_json: bool) -> int:
    """Prints what was copied, or would be, and what was there already. Returns the exit code."""
    already = (
        f"; {counted(len(report.unchanged), 'was there already', 'were there already')}"
        if report.unchanged
        else ""
    )
    done, nbytes = (f"would {verb}", report.nbytes_total) if report.dry_run else (f"{verb}ed", report.nbytes)
    summary = f"{done} {counted(len(report.copied), 'document')}, {output.size(nbytes)}{already} → {to}"
    value = {"url": url, "store": str(store), **report.to_json(f"{verb}ed")}
    output.emit(value, output.Lines(report.copied if report.dry_run else [], [summary]), as_json)
    return output.exit_code(report.problems, len(report.copied) + len(report.unchanged))
