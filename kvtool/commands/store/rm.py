"""kvtool rm: remove documents from a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import DryRun, StoreFlags, complete_documents, with_settings
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.config import Settings


@with_settings(StoreFlags)
def run(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME…", help="Remove these documents.", autocompletion=complete_documents),
    ],
    *,
    settings: Settings,
    dry_run: DryRun = False,
) -> None:
    """Remove documents from a store, and the artifacts that no other document uses."""
    from kvtool.store.catalog.open import open_to_write

    store = open_to_write(settings.store)
    # One unknown name, and none is removed.
    for name in names:
        store.stored(name)
    freed = None if dry_run else store.free(names)
    for name in names:
        output.note(f"{'would remove' if dry_run else 'removed'} {name}")
    if freed is not None:
        output.note(f"freed {counted(len(freed), 'artifact')}")
