"""kvtool keygen: make a key to sign documents with, or to encrypt a store with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson
from kvtool.errors import UsageError


def run(
    name: Annotated[
        Path,
        typer.Argument(
            help="Write NAME.pem, which signs, and NAME.pub.pem, which checks; with --encryption, NAME.key."
        ),
    ],
    encryption: Annotated[
        bool, typer.Option("--encryption", help="Make a key to encrypt stores with instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an Ed25519 key: the private half signs documents (kvtool sign), the public half is for who checks them.

    No file is overwritten. Of a secret one, its owner alone may read it.
    """
    from kvtool.system import files

    if encryption:
        from kvtool.artifact.store_key import new_store_key

        key = new_store_key()
        path = _beside(name, "key")
        files.write_private(path, key.to_text().encode())
        note = f"key {key.id}: {path} is secret, and what is encrypted with it is lost without it"
        output.emit({"id": key.id, "private": str(path), "public": None}, output.Lines(notes=[note]), as_json)
        return
    from kvtool.store.trust.keys import make_key, trusted_keys

    private, public = _beside(name, "pem"), _beside(name, "pub.pem")
    private_pem, public_pem = make_key()
    files.write_private(private, private_pem)
    files.write_atomic(public, [public_pem])
    (id,) = trusted_keys([public])
    note = f"key {id}: {private} signs and is secret, {public} is for who checks"
    output.emit(
        {"id": id, "private": str(private), "public": str(public)}, output.Lines(notes=[note]), as_json
    )


def _beside(name: Path, suffix: str) -> Path:
    path = name.with_name(f"{name.name}.{suffix}")
    if path.exists():
        raise UsageError(path, "is there already", "name another, or remove it")
    return path
