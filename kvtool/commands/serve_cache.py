"""kvtool serve-cache: cached documents behind OpenAI's API."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import ModelError, UsageError
from . import common


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
        str, typer.Option("--variant", help="raw, or a compressed variant's name, for named documents.")
    ] = "raw",
    memory: Annotated[
        float, typer.Option("--memory", min=0.001, help="GB that caches may take in memory, all together.")
    ] = 4.0,
    no_caches: Annotated[
        bool, typer.Option("--no-caches", help="Prefill everything anew, to compare with.")
    ] = False,
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
) -> None:
    """Serve answers over cached documents, with OpenAI's API.

    A prompt's longest cached beginning is found by itself; documents can be named in the request too. Stops at SIGTERM,
    once what runs is finished.
    """
    from ..config import settings

    if tokens is None and not _is_loopback(host):
        raise UsageError(f"--host {host}: is not this machine alone; say with --tokens who may ask")
    try:
        import uvicorn

        from ..server.app import create_app
        from ..server.auth import read_tokens
        from ..server.serving import Limits, Serving
    except ModuleNotFoundError as error:
        raise ModelError(f"serve-cache needs {error.name}: pip install 'kvtool[serve]'") from error
    chosen = settings(store=store, model=model, device=device, dtype=dtype, load_in=load_in, adapter=adapter)
    known = read_tokens(tokens) if tokens else {}
    loaded = common.load_model(chosen)
    serving = Serving.over(
        chosen.store,
        loaded,
        Limits(memory=int(memory * 1e9)),
        names=set(known.values()),
        variant=variant,
        use_caches=not no_caches,
    )
    listening = _listen(host, port)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            common.say(f"{loaded.name} over {chosen.store}: {where}/v1 (Ctrl+C stops)")

    # uvicorn, once it has shut down, raises again what it was stopped by.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    Server(uvicorn.Config(create_app(serving, known), log_level="warning")).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--host {host} --port {port}: cannot be listened on ({error}); choose another, or --port 0 for any"
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
