"""kvtool serve-cache: serve OpenAI's API over cached documents."""

from __future__ import annotations

import ipaddress
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_variants
from kvtool.commands.options import ModelFlags, load_model, with_settings
from kvtool.errors import ModelError, UsageError

if TYPE_CHECKING:
    from kvtool.config import Settings


class Log(StrEnum):
    plain = "plain"
    json = "json"


LogFormat = Annotated[Log, typer.Option(help="Write a line for each request to stderr, in this format.")]
Drain = Annotated[
    float, typer.Option(min=0, help="Give running answers this many seconds to finish at SIGTERM.")
]


@with_settings(ModelFlags)
def run(
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Listen on this port; 0 is any that is free.")
    ] = 8400,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="Answer only those in this file of lines NAME TOKEN, each over documents of their own, in "
            "STORE/tenants/NAME. Needed for other addresses than loopback. A third word is that tenant's quota."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Let pages of this origin, such as https://chat.example, use the server from a browser. Give it again for "
            "each further one."
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Load this variant of documents that a request names: raw, or a compressed one by its name "
            "(default: the best by measured times).",
            autocompletion=complete_variants,
        ),
    ] = None,
    max_load_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Load the finest variant that takes at most this many seconds, or prefill if that is in time.",
        ),
    ] = None,
    memory: Annotated[
        float, typer.Option(min=1e-6, help="Keep at most this many GB of caches in memory.")
    ] = 4.0,
    quota: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Keep each tenant's store within this size, such as 20GB, by removing the documents that were not used for the "
            "longest. What is pinned (kvtool pin) or in use stays. Of a remote store, its cache on this machine is meant.",
        ),
    ] = None,
    no_caches: Annotated[
        bool, typer.Option("--no-caches", help="Prefill every request in full, to compare with.")
    ] = False,
    log: LogFormat = Log.plain,
    drain: Drain = 30.0,
    *,
    settings: Settings,
) -> None:
    """Serve answers over cached documents, with OpenAI's API.

    The longest cached beginning of a prompt is found without being named; a request can name documents too. SIGTERM stops
    the server once running answers are finished; a second one stops it at once.
    """
    from kvtool.store.layout import address
    from kvtool.units import parse_quota

    if tokens is None and not is_loopback(host):
        raise UsageError(f"--host {host}", "is not this machine alone", "say with --tokens who may ask")
    if max_load_seconds is not None and (variant is not None or no_caches):
        flag = "--no-caches" if variant is None else "--variant"
        raise UsageError("--max-load-seconds", f"{flag} says already what is done", "leave one of them out")
    try:
        from kvtool.server.app import create_app
        from kvtool.server.http import logs
        from kvtool.server.http.auth import Tokens, read_tokens
        from kvtool.server.http.cross_site import read_origins
        from kvtool.server.http.server import Server, listen
        from kvtool.server.runtime.load_policy import LoadOptions
        from kvtool.server.runtime.service import Limits, Service
    except ModuleNotFoundError as error:
        raise ModelError("serve-cache", f"needs {error.name}", "pip install 'kvtool[serve]'") from error
    granted = read_tokens(tokens) if tokens else Tokens()
    quotas = granted.quotas
    if quota is not None:
        quotas = dict.fromkeys(granted.tenants.values() or [""], parse_quota(quota, "--quota")) | quotas
    origins = read_origins(allow_origin or [])
    model = load_model(settings)
    service = Service.over(
        settings.store,
        model,
        Limits(memory=int(memory * 1e9)),
        names=set(granted.tenants.values()),
        quotas=quotas,
        loading=LoadOptions(variant, max_load_seconds, use_caches=not no_caches),
    )
    service.warm_up()
    listening = listen(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    def started() -> None:
        output.note(f"{model.name} over {address(settings.store)}: {url}/v1 (Ctrl+C stops)")

    def stopping() -> None:
        service.is_draining = True

    logs.set_up(as_json=log is Log.json)
    server = Server(
        create_app(service, granted.tenants, origins), drain=drain, on_ready=started, on_drain=stopping
    )
    # uvicorn, once it has shut down, raises again what it was stopped by.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server.run([listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
