"""kvtool connector proxy: put documents by name before an engine that takes token ids."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import StoreFlags, load_model, with_settings
from kvtool.commands.serve_cache import Drain, Log, LogFormat, is_loopback
from kvtool.errors import ModelError

if TYPE_CHECKING:
    from kvtool.config import Settings


class TokenizerFlags(StoreFlags):
    """For a command that takes a model's tokenizer, and no weights."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Use the tokenizer and chat template of this model, which the engine runs: a directory, a .gguf file or a hub "
            "id, owner/name@revision (default: embedded)."
        ),
    ]


@with_settings(TokenizerFlags)
def run(
    engine: Annotated[
        str, typer.Option(metavar="URL", help="Send requests to the engine at this address.")
    ] = "http://localhost:8000",
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Listen on this port; 0 is any that is free.")
    ] = 8500,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Answer to this host name, such as proxy.example, beside addresses, localhost and --host. Give it again for "
            "each further one.",
        ),
    ] = None,
    log: LogFormat = Log.plain,
    drain: Drain = 30.0,
    *,
    settings: Settings,
) -> None:
    """Take requests with documents by name, as kvtool's server does, for an engine such as vLLM.

    The documents, the text between them and the question become token ids, for which kvtool's connector in the engine finds the
    caches. A stored blend of exactly these documents is named to it. All other requests are passed on.
    """
    from kvtool.store.layout import address
    from kvtool.store.open import open_store

    try:
        from kvtool.server.http import logs
        from kvtool.server.http.cross_site import read_names
        from kvtool.server.http.server import Server, listen
        from kvtool.server.proxy.app import create_proxy
        from kvtool.server.proxy.engine import Engine
        from kvtool.server.proxy.prompts import Prompts
    except ModuleNotFoundError as error:
        raise ModelError("connector proxy", f"needs {error.name}", "pip install 'kvtool[serve]'") from error
    names = [host.lower(), *read_names(allow_host or [])]
    engine_after = Engine(engine)
    model = load_model(settings)
    prompts = Prompts(open_store(settings.store, existing=True), model)
    listening = listen(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    def started() -> None:
        output.note(
            f"{model.name} over {address(settings.store)}, before {engine_after.url}: {url}/v1 (Ctrl+C stops)"
        )
        if not is_loopback(host):
            output.note("whoever reaches this address may name the store's documents; the engine checks keys")

    logs.set_up(as_json=log is Log.json)
    app = create_proxy(engine_after, prompts, names)
    server = Server(app, drain=drain, on_ready=started, on_drain=lambda: None)
    # uvicorn, once it has shut down, raises again what it was stopped by.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server.run([listening])
