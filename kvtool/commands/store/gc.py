"""kvtool gc: remove artifacts that nothing refers to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.commands import output
from kvtool.commands.options import AsJson, DryRun, StoreFlags, with_settings
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.config import Settings


@with_settings(StoreFlags)
def run(*, settings: Settings, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove artifacts that no document refers to, such as those of documents that changed.

    Calibrations are kept: each was made on purpose, and serves documents to come.
    """
    from kvtool.store.catalog.open import open_to_write

    store = open_to_write(settings.store)
    writers = store.writers() if dry_run else []
    removed = store.collect(dry_run=dry_run)
    report = {"dry_run": dry_run, "removed": [str(path) for path in removed], "writers": writers}
    output.emit(report, render(removed, dry_run, writers), as_json)


def render(removed: Sequence[Path], dry_run: bool, writers: Sequence[str]) -> output.Lines:
    if dry_run:
        notes = [f"would remove {counted(len(removed), 'artifact')}"]
        notes += [f"what {writer} has not committed yet is among them" for writer in writers]
        return output.Lines(list(map(str, removed)), notes)
    return output.Lines(notes=[f"removed {counted(len(removed), 'artifact')}"])
