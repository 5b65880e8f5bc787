"""kvtool pull: a server's or a bucket's documents → a local store."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from kvtool.commands import common


def run(
    url: Annotated[
        str,
        typer.Argument(help="A server: http://HOST:PORT. Or a bucket: s3://BUCKET/PREFIX.", metavar="URL"),
    ],
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Documents (default: all).", metavar="[NAME…]")
    ] = None,
    variant: Annotated[
        Optional[str], typer.Option("--variant", help="Only this variant: raw, klt, … (default: all).")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace documents that are others here than where they come from."),
    ] = False,
    store: common.StoreOption = None,
    dry_run: common.DryRunOption = False,
    as_json: common.JsonOption = False,
) -> int:
    """Copy documents from a server (kvtool serve-cache) or a bucket into a store, with what they are loaded from.

    The token is taken from KVTOOL_TOKEN, and credentials for a bucket from the environment. Every byte is checked. What is
    already there is not fetched again. An interrupted run, started again, goes on where it stopped.
    """
    from kvtool.config import settings
    from kvtool.store.open import open_store
    from kvtool.store.pull import pull

    opened = open_store(settings(store=store).store)
    with common.Bar("pulling") as bar:
        report = pull(
            open_store(url),
            opened,
            names or None,
            variant=variant,
            replace=replace,
            dry_run=dry_run,
            on_progress=lambda r: bar.update(r.nbytes / 1e6, r.nbytes_total / 1e6, "MB"),
        )
    if as_json:
        common.print_json(
            {
                "url": url,
                "store": str(opened),
                "dry_run": dry_run,
                "pulled": report.pulled,
                "unchanged": report.unchanged,
                "problems": [str(error) for error in report.problems],
                "bytes": report.nbytes_total if dry_run else report.nbytes,
            }
        )
    else:
        if dry_run:
            for name in report.pulled:
                typer.echo(name)
        verb, nbytes = ("would pull", report.nbytes_total) if dry_run else ("pulled", report.nbytes)
        there = f"; {len(report.unchanged)} were there already" if report.unchanged else ""
        common.say(f"{verb} {len(report.pulled)} documents, {common.size(nbytes)}{there} → {opened}")
    return common.problems(report.problems, len(report.pulled) + len(report.unchanged))
