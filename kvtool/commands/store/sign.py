"""kvtool sign: sign documents, and say whose signatures a store requires."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DocumentNames, DryRun, StoreFlags, with_settings
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.config import Settings


@with_settings(StoreFlags)
def run(
    names: DocumentNames = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Sign with the Ed25519 key in this PEM file (default: KVTOOL_SIGNING_KEY)."),
    ] = None,
    require: Annotated[
        bool,
        typer.Option(
            "--require", help="Refuse, from now on, documents of this store that this key has not signed."
        ),
    ] = False,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Sign documents: their manifests, and through the digests in these every byte of their artifacts.

    A variant that is added later is signed by nobody, until this command is run again.
    """
    from kvtool.store.catalog.open import open_to_write
    from kvtool.store.trust.keys import key_id, key_text, signing_key
    from kvtool.store.trust.sign_documents import sign_documents

    store = open_to_write(settings.store)
    private = signing_key(key)
    public = private.public_key()
    signed, unchanged = sign_documents(store, private, names, dry_run=dry_run)
    if require and not dry_run:
        store.require([*store.marker.signed_by, key_text(public)])
    id = key_id(public)
    report = {"key": id, "dry_run": dry_run, "signed": signed, "unchanged": unchanged}
    verb = "would sign" if dry_run else "signed"
    notes = [f"{verb} {counted(len(signed), 'document')} with key {id}; {len(unchanged)} were signed already"]
    output.emit(report, output.Lines(notes=notes), as_json)
