"""kvtool gc: remove what nothing refers to."""

from __future__ import annotations

import typer

from kvtool.commands import common


def run(
    store: common.StoreOption = None, dry_run: common.DryRunOption = False, as_json: common.JsonOption = False
) -> None:
    """Remove artifacts that no document refers to, such as those of documents that changed.

    Calibrations stay: each was made on purpose, and serves documents to come.
    """
    from kvtool.config import settings
    from kvtool.store.local import writable
    from kvtool.store.open import open_store

    opened = writable(open_store(settings(store=store).store))
    unused = opened.collect(dry_run=dry_run)
    if as_json:
        common.print_json({"dry_run": dry_run, "removed": [str(path) for path in unused]})
        return
    if dry_run:
        for path in unused:
            typer.echo(path)
    common.say(f"{'would remove' if dry_run else 'removed'} {len(unused)} artifacts")
