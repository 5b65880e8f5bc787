"""kvtool gc: remove artifacts that nothing refers to, and what rules say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DryRun, StoreFlags, split, with_settings
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.store.room.make_room import Room
    from kvtool.store.room.rules import Rules


@with_settings(StoreFlags)
def run(
    max_age: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Remove documents that were committed longer ago, such as 30d."),
    ] = None,
    max_idle: Annotated[
        str | None, typer.Option(metavar="TIME", help="Remove documents that nobody has used for so long.")
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIANT,…", help="Keep these variants of each document, and remove the others."
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove documents, those first that were not used for the longest, until the store is no larger, such as 20GB.",
        ),
    ] = None,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no document refers to, such as those of documents that changed, and what the rules say.

    Without a rule, no document is removed. What is pinned (kvtool pin) or in use is left alone. Calibrations are kept: each was
    made on purpose, and serves documents to come.
    """
    from kvtool.store.catalog.open import open_to_write
    from kvtool.store.room.make_room import make_room
    from kvtool.store.room.rules import Rules
    from kvtool.units import parse_bytes, parse_duration

    kept = split(variants)
    rules = Rules(
        max_age=parse_duration(max_age, "--max-age") if max_age else None,
        max_idle=parse_duration(max_idle, "--max-idle") if max_idle else None,
        variants=frozenset(kept) if kept else None,
        max_bytes=parse_bytes(max_size, "--max-size") if max_size else None,
    )
    store = open_to_write(settings.store)
    writers = store.writers() if dry_run else []
    room = make_room(store, rules, dry_run=dry_run)
    assert room is not None  # It has waited for writers.
    output.emit(to_json(room, dry_run, writers), render(room, rules, dry_run, writers), as_json)


def to_json(room: Room, dry_run: bool, writers: Sequence[str]) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "documents": {name: reason.value for name, reason in room.documents.items()},
        "trimmed": list(room.trimmed),
        "removed": [str(path) for path in room.artifacts],
        "bytes": room.nbytes,
        "writers": list(writers),
    }


def render(room: Room, rules: Rules, dry_run: bool, writers: Sequence[str]) -> output.Lines:
    data = [f"{name} ({reason})" for name, reason in room.documents.items()]
    data += [f"{name} (other variants)" for name in room.trimmed]
    verb = "would remove" if dry_run else "removed"
    documents = f"{counted(len(room.documents), 'document')} and " if room.documents else ""
    notes = [f"{verb} {documents}{counted(len(room.artifacts), 'artifact')}; {output.size(room.nbytes)} left"]
    if rules.max_bytes is not None and room.nbytes > rules.max_bytes:
        notes.append(
            f"more than {output.size(rules.max_bytes)}, since the rest is pinned, in use or calibrations"
        )
    if dry_run:
        data += [str(path) for path in room.artifacts]
        notes += [f"what {writer} has not committed yet is among them" for writer in writers]
    return output.Lines(data, notes)
