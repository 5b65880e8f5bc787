"""The command line: parsing only. Each verb's work is in ``commands/`` and imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.commands import ask, calibrate, common, compress, demo, eval, prefill, recipes, serve_cache
from kvtool.commands.store import gc, ls, pull, rm, show, verify
from kvtool.errors import EXIT_CODES

app = typer.Typer(
    name="kvtool",
    help="Turns documents into KV caches ahead of time: prefill, compress, store, load, ask.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", is_eager=True, callback=common.print_version
        ),
    ] = False,
) -> None:
    common.debug = debug


for command in (
    prefill,
    calibrate,
    compress,
    ask,
    eval,
    serve_cache,
    ls,
    show,
    verify,
    rm,
    gc,
    pull,
    recipes,
    demo,
):
    app.command(epilog=EXIT_CODES)(common.guarded(command.run, command.__name__.rpartition(".")[2]))


def main() -> None:
    app()
