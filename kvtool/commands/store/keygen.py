"""kvtool keygen: make a key to sign documents with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson
from kvtool.errors import UsageError


def run(
    name: Annotated[
        Path, typer.Argument(help="Write the private key to NAME.pem and the public one to NAME.pub.pem.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make an Ed25519 key: the private half signs documents (kvtool sign), the public half is for who checks them.

    No file is overwritten.
    """
    from kvtool.store.trust.keys import make_key, trusted_keys
    from kvtool.system import files

    private, public = name.with_name(f"{name.name}.pem"), name.with_name(f"{name.name}.pub.pem")
    for path in (private, public):
        if path.exists():
            raise UsageError(path, "is there already", "name another, or remove it")
    private_pem, public_pem = make_key()
    files.write_private(private, private_pem)
    files.write_atomic(public, [public_pem])
    (id,) = trusted_keys([public])
    report = {"id": id, "private": str(private), "public": str(public)}
    notes = [f"key {id}: {private} signs and stays secret, {public} is for who checks"]
    output.emit(report, output.Lines(notes=notes), as_json)
