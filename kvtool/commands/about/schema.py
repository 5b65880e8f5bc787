"""kvtool schema: print the JSON Schema of what a command prints with --json."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kvtool.errors import UsageError


def run(
    command: Annotated[
        str | None,
        typer.Argument(metavar="[COMMAND]", help="Describe this command (default: all, by name)."),
    ] = None,
) -> None:
    """Print the JSON Schema of what a command prints with --json, for scripts that check or read it.

    With every version of kvtool, keys may be added. Keys that are there keep their meaning, or the changelog says otherwise.
    """
    from kvtool.config import near_name
    from kvtool.report.schemas.table import VALUES, json_schema

    if command is not None and command not in VALUES:
        reason = f"{command} is no command with --json"
        raise UsageError(None, reason, near_name(command, VALUES))
    every = json_schema(command) if command else {name: json_schema(name) for name in VALUES}
    typer.echo(json.dumps(every, indent=2, ensure_ascii=False))
