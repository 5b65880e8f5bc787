"""A store of documents longer than a few of LMCache's chunks, and a server of LMCache's over it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

import kvtool
from kvtool.store.local import LocalStore
from kvtool.testing.tiny_model import save_model

os.environ.setdefault("LMCACHE_LOG_LEVEL", "WARNING")
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")

CHUNK = 64
SECONDS = 60.0
FINE = {"step": 0.001, "power": 0.0}


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """Two documents of five chunks each by a tiny model, raw and by klt; not to be written to."""
    place = tmp_path_factory.mktemp("documents")
    tiny = kvtool.load_model(save_model(place / "tiny"), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("a.md").write_text("The red apple costs three crowns. " * 10)
        Path("b.md").write_text("The baker opens at six, and the rye loaf is best. " * 7)
        store = LocalStore(place / "kv-store")
        assert not kvtool.prefill(["a.md", "b.md"], model=tiny, store=store).problems
        kvtool.compress(store, recipe="klt", model=tiny, **FINE)
    return store


@dataclass
class Server:
    """A running ``lmcache server``, its files in ``folder``."""

    port: int
    http_port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"lmcache://127.0.0.1:{self.port}?http={self.http_port}"

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "l2").glob("*.data"))

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts a server with this serde, or none."""
    started: list[Server] = []

    def start(serde: dict[str, Any] | None = None, mode: str = "auto") -> Server:
        folder = tmp_path_factory.mktemp("server")
        port, http_port = _free_port(), _free_port()
        adapter = {
            "type": "plugin",
            "module_path": "kvtool.connectors.lmcache.plugin",
            "class_name": "Adapter",
            "adapter_params": {"type": "fs", "base_path": str(folder / "l2")},
            **({"serde": {"type": "kvtool", **serde}} if serde else {}),
        }
        command = [
            sys.executable,
            "-m",
            "lmcache.cli.main",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--http-host", "127.0.0.1", "--http-port", str(http_port), "--chunk-size", str(CHUNK)]
        command += ["--l1-size-gb", "1", "--l1-init-size-gb", "1", "--eviction-policy", "LRU"]
        command += ["--disable-observability", "--l2-adapter", json.dumps(adapter)]
        command += ["--shm-name", f"kvtool{os.getpid()}-{len(started)}", "--supported-transfer-mode", mode]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        server = Server(port, http_port, folder, process)
        started.append(server)
        _wait(server)
        return server

    yield start
    for server in started:
        server.process.terminate()
        server.process.wait(SECONDS)


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """One without a serde, which tests share: each has a salt of its own."""
    return start_server()


def _wait(server: Server) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log()
        try:
            urlopen(f"http://127.0.0.1:{server.http_port}/config", timeout=5).read()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(server.log())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
