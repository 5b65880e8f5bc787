"""What the server's choice between variants and prefilling gives, over links of several speeds.

python -m benchmarks loading [--documents 4] [--tokens 2000] [--links 1000 100 20] [--within 1]

A server reads its documents from another one, over a link of so many Mbit/s (a proxy that forwards no faster), and each is asked
about once: TTFT is with its cache neither in memory nor on disk.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import httpx

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.server import Asked, ask_once, served
from benchmarks.corpora.help_text import prefilled_help

RECIPE = "cachegen"
QUESTION = "What is this text about?"
PIECE = 16_384


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--links", type=float, nargs="+", default=[1000, 100, 20], help="Mbit/s")
    parser.add_argument("--within", type=float, default=1.0, help="seconds")
    arguments = parser.parse_args(argv)
    print(machine())
    model = kvtool.load_model()
    ways = {
        "--variant raw": ("--variant", "raw"),
        f"--variant {RECIPE}": ("--variant", RECIPE),
        "--no-caches": ("--no-caches",),
        "measured": (),
        f"measured, --max-load-seconds {arguments.within:g}": ("--max-load-seconds", f"{arguments.within:g}"),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, KVTOOL_CACHE_DIR=f"{folder}/cache"),
    ):
        store, names = prefilled_help(model, Path(folder), arguments.documents, arguments.tokens)
        kvtool.compress(store, recipe=RECIPE)
        print(f"raw: {store.size(names[0]):,} bytes, {RECIPE}: {store.size(names[0], RECIPE):,}", flush=True)
        rows = [
            [f"{link:g}", name, *_asked_once(store, names, model, link, options)]
            for link in arguments.links
            for name, options in ways.items()
        ]
    print_table(["Mbit/s", "how", "TTFT of each, s", "median, s"], rows)


def _asked_once(
    store: kvtool.Store, names: Sequence[str], model: kvtool.Model, link: float, options: Sequence[str]
) -> list[object]:
    shutil.rmtree(Path(os.environ["KVTOOL_CACHE_DIR"]) / "servers", ignore_errors=True)
    with (
        served("--store", str(store)) as (_, origin),
        _slow(origin, link * 1e6 / 8) as address,
        served("--store", address, *options) as (_, url),
        httpx.Client(timeout=600) as http,
    ):
        # The first request of all pays for more than its cache.
        ask_once(http, url, model.name, Asked(None, "What is a harbour?"))
        found = [ask_once(http, url, model.name, Asked(name, QUESTION))[1] for name in names]
    return [" ".join(f"{seconds:.2f}" for seconds in found), f"{statistics.median(found):.2f}"]


@contextmanager
def _slow(url: str, bytes_per_second: float) -> Iterator[str]:
    """An address that leads to ``url``, whose answers come no faster."""
    target = urlsplit(url)
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            upstream = socket.create_connection((target.hostname, target.port or 80))
            threading.Thread(target=_forward, args=(client, upstream, 0.0), daemon=True).start()
            threading.Thread(target=_forward, args=(upstream, client, bytes_per_second), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def _forward(source: socket.socket, to: socket.socket, bytes_per_second: float) -> None:
    due = time.monotonic()
    while piece := source.recv(PIECE):
        to.sendall(piece)
        if bytes_per_second:
            due = max(due, time.monotonic() - 0.1) + len(piece) / bytes_per_second
            time.sleep(max(0.0, due - time.monotonic()))
    to.shutdown(socket.SHUT_WR)
