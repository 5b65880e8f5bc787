"""kvtool connector proxy, as a process: before an engine, and where something is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kvtool.errors import FAILED, USAGE
from tests.commands.conftest import Cli, error_of
from tests.loopback import listen
from tests.server.proxy.engine import FakeEngine

pytestmark = pytest.mark.usefixtures("store")


@contextmanager
def running(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Where the proxy answers, over the working directory's store."""
    arguments = ["-m", "kvtool", "connector", "proxy", "--port", "0", *options]
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "(Ctrl+C stops)" in line)
        yield line.split(" (")[0].rpartition(" ")[2].removesuffix("/v1"), process
    finally:
        process.kill()
        process.wait()


def test_it_runs_before_an_engine_until_it_is_stopped(tiny_dir: Path) -> None:
    engine = FakeEngine()
    hosts = ("--allow-host", "a.example", "--allow-host", "B.example")
    with (
        listen(engine.app) as url,
        running("--model", str(tiny_dir), "--engine", url, "--log", "json", *hosts) as (proxy, process),
        httpx.Client(base_url=proxy) as client,
    ):
        body = {"model": "served", "prompt": "What?", "documents": ["docs/a.md", "c.txt"]}
        assert client.post("/v1/completions", json=body).json()["id"] == "cmpl-1"
        asked = engine.requests[0]["body"]
        assert asked["kv_transfer_params"]["kvtool"] == {"documents": body["documents"], "blend": None}
        for host, status in (("a.example", 200), ("b.example", 200), ("c.example", 403)):
            assert client.get("/v1/models", headers={"host": host}).status_code == status
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert '"path": "/v1/completions"' in log
    assert "What?" not in log


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--engine", "localhost:8000"), USAGE, "expected one such as http://localhost:8000"),
        (("--engine", "http://a:b@c"), USAGE, "--engine: is no address of a server"),
        (("--allow-host", "http://a.example"), USAGE, "expected one without scheme and port"),
        (("--store", "missing"), FAILED, "there is no store"),
        (("--model", "missing"), FAILED, "no such directory"),
    ],
)
def test_what_makes_no_sense_is_refused(cli: Cli, options: tuple[str, ...], code: int, says: str) -> None:
    assert says in error_of(cli("connector", "proxy", *options, code=code))
