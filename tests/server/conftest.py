"""A tiny model, documents, and the server over them: within the process, and as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app as commands
from kvtool.codecs import Calibration, Recipe, Sample
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.loopback import listen
from tests.server.asking import LIMITS

TEXTS = {
    "docs/a.txt": "The harbour lies to the north of the town, and seven ships are in it.\n",
    "docs/b.txt": "A loaf of rye bread costs three crowns at the baker's behind the mill.\n",
    "docs/c.txt": "Keys and values of every token are kept, layer by layer, and read again.\n" * 2,
}

RAW_ONLY = LoadOptions(variant="raw")
"""Tiny models prefill as fast as they read a cache. Without this the machine would decide which of both is done."""


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    return TEXTS


@pytest.fixture(scope="session")
def served_dir(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for conversations, whose weights are so large that attention looks somewhere in particular."""
    directory = tmp_path_factory.mktemp("models") / "served"
    return make_model(directory, initializer_range=0.3, max_position_embeddings=2048)


@pytest.fixture(scope="session")
def served(served_dir: Path) -> kvtool.Model:
    return kvtool.load_model(served_dir, device="cpu")


@pytest.fixture
def documents(served: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """``TEXTS``, prefilled in the working directory's kv-store."""
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    store = LocalStore("kv-store")
    kvtool.prefill(["docs"], model=served, store=store)
    return store


@pytest.fixture
def service(served: kvtool.Model, documents: LocalStore) -> Service:
    return Service.over(documents.root, served, LIMITS, loading=RAW_ONLY)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


@dataclass(frozen=True)
class Running:
    """``log`` are the lines of its stderr, as they come."""

    process: subprocess.Popen[str]
    url: str
    log: list[str]


@pytest.fixture(scope="session")
def starting(served_dir: Path) -> Callable[..., AbstractContextManager[Running]]:
    """``kvtool serve-cache`` as a process of its own, on any free port, with further options.

    ``code`` starts it instead of ``-m kvtool``.
    """

    @contextmanager
    def run(*options: str, model: Path | str = served_dir, code: str = "") -> Iterator[Running]:
        kvtool = ["-c", code] if code else ["-m", "kvtool"]
        arguments = ["serve-cache", "--port", "0", "--model", str(model), "--variant", "raw", *options]
        process = subprocess.Popen([sys.executable, *kvtool, *arguments], stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            log = []
            for line in process.stderr:
                log.append(line)
                if "http://" in line:
                    break
            else:
                raise AssertionError("".join(log))
            # Were nobody to read, the server would wait for room in the pipe.
            threading.Thread(target=log.extend, args=[process.stderr], daemon=True).start()
            yield Running(process, line.split(" (")[0].rpartition(" ")[2].removesuffix("/v1").strip(), log)
        finally:
            process.kill()
            process.wait()

    return run


@pytest.fixture
def running(
    starting: Callable[..., AbstractContextManager[Running]], documents: LocalStore
) -> Callable[..., AbstractContextManager[Running]]:
    """The same over ``documents``."""
    return starting


@pytest.fixture
def calibrated(documents: LocalStore, served: kvtool.Model, centred: Recipe) -> Calibration:
    """The calibration of all documents' variant centred."""
    assert centred.fit
    samples = [Sample(documents.read(name)) for name in TEXTS]
    calibration = centred.fit(samples).made(model=served.fingerprint, source=list(TEXTS))
    with documents.writing():
        documents.put_calibration(calibration)
    kvtool.compress(documents, recipe="centred")
    return calibration


@pytest.fixture
def commands_read(documents: LocalStore) -> Callable[[str], None]:
    """Asserts that commands read ``documents`` from an address as from their directory."""

    def run(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(commands, arguments)
        assert result.exit_code == code, result.stderr
        return result

    def check(address: str) -> None:
        assert run("ls", "--store", address).stdout == run("ls").stdout
        shown = run("show", "docs/a.txt", "--store", address, "--json")
        assert json.loads(shown.stdout)["name"] == "docs/a.txt"
        assert "4 artifacts are intact" in run("verify", "--store", address).stderr
        assert "is read only" in run("rm", "docs/a.txt", "--store", address, code=1).stderr

    return check


class Counted:
    """An application whose requests are counted by the kind of path they ask for."""

    def __init__(self, app: Any) -> None:
        self.app, self.requests = app, Counter[str]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requests[scope["path"].split("/")[2]] += 1
        await self.app(scope, receive, send)


@pytest.fixture
def listening() -> Callable[..., AbstractContextManager[str]]:
    """``tests.loopback.listen``."""
    return listen


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(service: Service) -> Counted:
    return Counted(create_app(service))


@pytest.fixture
def url(
    counted: Counted, listening: Callable[..., AbstractContextManager[str]], cache: Path
) -> Iterator[str]:
    """Where ``counted`` answers."""
    with listening(counted) as url:
        yield url
