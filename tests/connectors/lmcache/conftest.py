"""A server that says of itself what LMCache's does; and for tests that run LMCache, a server of its and documents for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.store.local import LocalStore
from kvtool.testing.tiny_model import save_model
from tests.connectors.lmcache.running import FINE, SECONDS, Server, start


class FakeServer:
    """``config`` and ``status`` are what it answers, with the fields that kvtool reads."""

    def __init__(self) -> None:
        self.config: Any = {"mp": {"chunk_size": 16, "supported_transfer_mode": "auto", "shm_name": "pool"}}
        self.status: Any = {"cache_context_meta": {}}

    def serve(self, model: str, **changes: Any) -> None:
        """Lets an engine register a model of the tiny one's layout, with ``changes``."""
        group = {
            "dtype": "torch.float32",
            "is_mla": False,
            "engine_kv_shape": "NL x [NB, 2, NH, BS, HS]",
            "engine_kv_concrete_shape": "2 x [64, 2, 2, 16, 8]",
            **changes,
        }
        layout = {
            "num_layers": changes.get("num_layers", 2),
            "kernel_groups": [group] * changes.get("groups", 1),
        }
        self.status["cache_context_meta"][str(len(self.status["cache_context_meta"]))] = {
            "model_name": model,
            "world_size": changes.get("world_size", 1),
            "kv_cache_layout": layout,
        }


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"/config": fake.config, "/status": fake.status}[self.path]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        fake.port = http.server_port
        fake.address = f"lmcache://127.0.0.1:5555?http={fake.port}"
        yield fake
        http.shutdown()


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


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """``running.start``, in a folder of its own."""
    started: list[Server] = []

    def make(serde: dict[str, Any] | None = None, mode: str = "auto") -> Server:
        started.append(start(tmp_path_factory.mktemp("server"), serde, mode))
        return started[-1]

    yield make
    for each in started:
        each.process.terminate()
    for each in started:
        each.process.wait(SECONDS)


@pytest.fixture(scope="session")
def running(start_server: Callable[..., Server]) -> Server:
    """A server without a serde, which tests share: each has a salt of its own."""
    return start_server()
