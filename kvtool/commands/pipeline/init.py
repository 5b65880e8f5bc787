"""kvtool init: write a project's first kvtool.toml."""

from __future__ import annotations

from pathlib import Path

from kvtool.commands import output
from kvtool.commands.options import DryRun
from kvtool.counts import counted
from kvtool.errors import UsageError


def run(*, dry_run: DryRun = False) -> None:
    """Write a first kvtool.toml for kvtool build, by looking at this folder."""
    from kvtool.pipeline.starter import starter
    from kvtool.system.files import write_atomic

    file = Path("kvtool.toml")
    if file.exists() and not dry_run:
        raise UsageError(file, "is there already", "kvtool init --dry-run prints what it would write")
    first = starter(Path.cwd())
    if dry_run:
        output.emit(None, output.Lines(first.text.splitlines()), False)
        return
    write_atomic(file, [first.text.encode()])
    output.note(
        f"wrote {file}: {counted(first.documents, 'document')}, model {first.model}; look at it, then run kvtool build. "
        "kvtool.lock belongs into version control, kv-store/ does not"
    )
