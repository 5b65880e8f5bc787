"""A server that says of itself what LMCache's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


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
