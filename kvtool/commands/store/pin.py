"""kvtool pin: keep documents from being removed to make room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DocumentNames, StoreFlags, with_settings
from kvtool.counts import counted
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.config import Settings


@with_settings(StoreFlags)
def run(
    names: DocumentNames = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the pins away instead.")] = False,
    *,
    settings: Settings,
    as_json: AsJson = False,
) -> None:
    """Pin documents: kvtool gc and a server's quota leave them alone. Without a name, list what is pinned."""
    from kvtool.store.catalog.open import open_to_write

    store = open_to_write(settings.store)
    if names is None and remove:
        raise UsageError("--remove", "needs the names of documents", "kvtool pin lists what is pinned")
    for name in names or ():
        if not remove:
            store.stored(name)
    for name in names or ():
        with store.writing():
            (store.pins.discard if remove else store.pins.add)(name)
    pins = list(store.pins)
    if names is None:
        output.emit({"pinned": pins}, output.Lines(pins), as_json)
    else:
        verb = "unpinned" if remove else "pinned"
        output.emit(
            {"pinned": pins}, output.Lines(notes=[f"{verb} {counted(len(names), 'document')}"]), as_json
        )
