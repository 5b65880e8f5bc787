"""A server of LMCache's, in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

os.environ.setdefault("LMCACHE_LOG_LEVEL", "WARNING")
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")

CHUNK = 64
SECONDS = 60.0
FINE = {"step": 0.001, "power": 0.0}


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


def start(folder: Path, serde: dict[str, Any] | None = None, mode: str = "auto") -> Server:
    """Starts a server over files in ``folder``, with this serde or none."""
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
    command += ["--shm-name", f"kvtool{port}", "--supported-transfer-mode", mode]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = Server(port, http_port, folder, process)
    try:
        _wait(server)
    except BaseException:
        process.kill()
        raise
    return server


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
