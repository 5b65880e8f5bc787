"""kvtool pull: copy documents from a server or a bucket into a local store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DocumentNames, DryRun, StoreFlags, with_settings
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.store.transfer.transfer import Report


@with_settings(StoreFlags)
def run(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Copy from this server, http://HOST:PORT, or from this bucket, s3://BUCKET/PREFIX.",
        ),
    ],
    names: DocumentNames = None,
    variant: Annotated[
        str | None, typer.Option(help="Copy only this variant: raw, klt, … (default: all).")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace documents of the store that differ from the remote ones."),
    ] = False,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Copy documents from a server (kvtool serve-cache) or a bucket into a store, with all that loading them needs.

    The token is taken from KVTOOL_TOKEN, and credentials for a bucket from the environment. Every byte is checked. What is
    already there is not fetched again. An interrupted run, started again, goes on where it stopped.
    """
    from kvtool.store.open import open_store
    from kvtool.store.transfer.pull import pull

    store = open_store(settings.store)
    with output.Bar("pulling") as bar:
        report = pull(
            open_store(url),
            store,
            names or None,
            variant=variant,
            replace=replace,
            dry_run=dry_run,
            on_progress=lambda r: bar.update(r.nbytes / 1e6, r.nbytes_total / 1e6, "MB"),
        )
    value = {"url": url, "store": str(store), **report.to_json("pulled")}
    lines = output.Lines(report.copied if dry_run else [], [summary(report, "pull", store)])
    output.emit(value, lines, as_json)
    return output.exit_code(report.problems, len(report.copied) + len(report.unchanged))


def summary(report: Report, verb: str, to: object) -> str:
    """What was copied, or would be, and what was there already."""
    already = (
        f"; {counted(len(report.unchanged), 'was there already', 'were there already')}"
        if report.unchanged
        else ""
    )
    done, nbytes = (f"would {verb}", report.nbytes_total) if report.dry_run else (f"{verb}ed", report.nbytes)
    return f"{done} {counted(len(report.copied), 'document')}, {output.size(nbytes)}{already} → {to}"
