"""kvtool serve-cache: cached documents behind OpenAI's API."""

from __future__ import annotations

import ipaddress
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from kvtool.commands import common
from kvtool.errors import ModelError, UsageError


class Log(StrEnum):
    plain = "plain"
    json = "json"


def run(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8400,
    tokens: Annotated[
        Optional[Path],
        typer.Option(
            "--tokens",
            help="A file of lines NAME TOKEN: who may ask, each over documents of their own, in STORE/tenants/NAME. "
            "Needed off loopback.",
        ),
    ] = None,
    variant: Annotated[
        Optional[str],
        typer.Option(
            "--variant",
            help="raw, or a compressed variant's name: load this one of named documents. Else what is measured decides.",
        ),
    ] = None,
    within: Annotated[
        Optional[float],
        typer.Option(
            "--within",
            min=0,
            help="Seconds that loading may take: a coarser variant, or prefilling, is taken for it.",
        ),
    ] = None,
    memory: Annotated[
        float, typer.Option("--memory", min=1e-6, help="GB that caches may take in memory, all together.")
    ] = 4.0,
    no_caches: Annotated[
        bool, typer.Option("--no-caches", help="Prefill everything anew, to compare with.")
    ] = False,
    log: Annotated[
        Log, typer.Option("--log", help="How the line of each request is written to stderr.")
    ] = Log.plain,
    drain: Annotated[
        float, typer.Option("--drain", min=0, help="Seconds that answers have to finish at SIGTERM.")
    ] = 30.0,
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
) -> None:
    """Serve answers over cached documents, with OpenAI's API.

    A prompt's longest cached beginning is found by itself; documents can be named in the request too. Stops at SIGTERM,
    once what runs is finished; a second one ends it at once.
    """
    from kvtool.config import settings
    from kvtool.store.layout import address

    if tokens is None and not _is_loopback(host):
        raise UsageError(f"--host {host}", "is not this machine alone", "say with --tokens who may ask")
    if within is not None and (variant is not None or no_caches):
        flag = "--no-caches" if variant is None else "--variant"
        raise UsageError("--within", f"{flag} says already what is done", "leave one of them out")
    try:
        from kvtool.server.app import create_app
        from kvtool.server.http import logs
        from kvtool.server.http.auth import read_tokens
        from kvtool.server.http.server import Server, listen
        from kvtool.server.runtime.load_policy import LoadOptions
        from kvtool.server.runtime.service import Limits, Service
    except ModuleNotFoundError as error:
        raise ModelError("serve-cache", f"needs {error.name}", "pip install 'kvtool[serve]'") from error
    chosen = settings(store=store, model=model, device=device, dtype=dtype, load_in=load_in, adapter=adapter)
    known = read_tokens(tokens) if tokens else {}
    loaded = common.load_model(chosen)
    service = Service.over(
        chosen.store,
        loaded,
        Limits(memory=int(memory * 1e9)),
        names=set(known.values()),
        loading=LoadOptions(variant, max_load_seconds=within, use_caches=not no_caches),
    )
    service.warm_up()
    listening = listen(host, port)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    def started() -> None:
        common.say(f"{loaded.name} over {address(chosen.store)}: {where}/v1 (Ctrl+C stops)")

    def stopping() -> None:
        service.is_draining = True

    logs.set_up(as_json=log is Log.json)
    server = Server(create_app(service, known), drain=drain, on_ready=started, on_drain=stopping)
    # uvicorn, once it has shut down, raises again what it was stopped by.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server.run([listening])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
