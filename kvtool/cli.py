"""The command line. Each command is a module of ``kvtool.commands``, which imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.commands import (
    ask,
    calibrate,
    compress,
    demo,
    doctor,
    options,
    output,
    prefill,
    recipes,
    serve_cache,
)
from kvtool.commands.measurement import bench, eval, recommend
from kvtool.commands.pipeline import build, init
from kvtool.commands.store import gc, ls, pull, push, rm, show, verify
from kvtool.errors import EXIT_CODES

app = typer.Typer(
    name="kvtool",
    help="Turn documents into KV caches ahead of time: prefill, compress, store, load, ask.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def kvtool(
    debug: Annotated[bool, typer.Option("--debug", help="Show the tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=options.print_version
        ),
    ] = False,
) -> None:
    output.debug = debug


COMMANDS = (
    prefill,
    calibrate,
    compress,
    ask,
    eval,
    recommend,
    bench,
    init,
    build,
    serve_cache,
    ls,
    show,
    verify,
    rm,
    gc,
    push,
    pull,
    recipes,
    demo,
    doctor,
)
"""In the order of --help."""

for command in COMMANDS:
    app.command(epilog=EXIT_CODES)(output.guarded(command.run, command.__name__.rpartition(".")[2]))


def main() -> None:
    app()
