"""The command line. Each command is a module of ``kvtool.commands``, which imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.commands import (
    ask,
    blend,
    calibrate,
    compress,
    demo,
    options,
    output,
    prefill,
    recipes,
    serve_cache,
)
from kvtool.commands.about import doctor, schema
from kvtool.commands.connectors import proxy, vllm
from kvtool.commands.measurement import bench, eval, recommend
from kvtool.commands.pipeline import build, init
from kvtool.commands.setup import install_model
from kvtool.commands.store import encrypt, gc, keygen, ls, pin, pull, push, rm, show, sign, verify
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
    blend,
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
    pin,
    keygen,
    sign,
    encrypt,
    push,
    pull,
    recipes,
    demo,
    install_model,
    doctor,
    schema,
)
"""In the order of --help."""

CONNECTORS = (vllm, proxy)
"""Those of ``kvtool connector``, in the order of its --help."""

connectors = typer.Typer(
    name="connector",
    help="Put a store's documents into other engines.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
)
app.add_typer(connectors)

for group, commands in ((app, COMMANDS), (connectors, CONNECTORS)):
    for command in commands:
        name = command.__name__.rpartition(".")[2]
        group.command(epilog=EXIT_CODES)(options.with_quiet(output.guarded(command.run, name)))


def main() -> None:
    app()
