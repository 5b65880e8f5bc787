"""kvtool rm: forget documents."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.commands import common


def run(
    names: Annotated[list[str], typer.Argument(help="Documents.", metavar="NAME…")],
    store: common.StoreOption = None,
    dry_run: common.DryRunOption = False,
) -> None:
    """Remove documents from a store, and the artifacts that no other document uses."""
    from kvtool.config import settings
    from kvtool.store.local import writable
    from kvtool.store.open import open_store

    opened = writable(open_store(settings(store=store).store))
    for name in names:
        opened[name]
    for name in names:
        if not dry_run:
            opened.remove(name)
        common.say(f"{'would remove' if dry_run else 'removed'} {name}")
    if not dry_run:
        freed = opened.collect()
        common.say(f"freed {len(freed)} artifacts")
