"""Documents pushed into a real LMCache server, on the CPU, are what its own look-up finds.

A stand-in for vLLM's worker registers the model's layout and loads blocks, with LMCache's own transfer context over CPU
tensors. Everything else is LMCache's: the server, its shared memory, its SDK, its L2 files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest
import torch

pytest.importorskip("lmcache")

import zmq
from lmcache.sdk import kvcache
from lmcache.v1.gpu_connector.utils import LayoutHints
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey
from lmcache.v1.multiprocess.transfer_context.worker_transfer import create_transfer_context
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory
from typer.testing import CliRunner

from kvtool.cli import app
from kvtool.connectors.lmcache.push import push_to_lmcache
from kvtool.store.local import LocalStore
from tests.connectors.lmcache.pieces import piece_of
from tests.connectors.lmcache.running import CHUNK, FINE, Server
from tests.connectors.shown import shown

BLOCK = 16
LAYERS, HEADS, CHANNELS = 2, 2, 8


class Worker:
    """Registers blocks of the tiny model's layout, as a vLLM worker does, and loads what a prompt's look-up found."""

    def __init__(self, server: Server, model: str = "tiny") -> None:
        self.context = zmq.Context()
        self.client = RequestClientFactory.create(f"tcp://127.0.0.1:{server.port}", context=self.context)
        self.blocks = {
            f"layer.{i}": torch.zeros(32, 2, HEADS, BLOCK, CHANNELS, dtype=torch.float32)
            for i in range(LAYERS)
        }
        self.model = model
        self.transfer = create_transfer_context(
            self.blocks, instance_id=7, req_client=self.client, mode="lmcache_driven"
        )
        hints = LayoutHints(kv_layout="HND", num_kv_heads=HEADS, tokens_per_block=BLOCK, head_dim=CHANNELS)
        self.transfer.register(self.blocks, model, 1, CHUNK // BLOCK, 20.0, layout_hints=hints)

    def load(self, token_ids: list[int], salt: str = "") -> int:
        """Looks a prompt up and loads what is found into blocks 1, 2, …; gives the number of tokens."""
        whole, prompt = len(token_ids) // CHUNK * CHUNK, uuid4().hex
        about = {
            "model_name": self.model,
            "world_size": 1,
            "token_ids": tuple(token_ids[:whole]),
            "start": 0,
            "request_id": prompt,
            "num_kv_readers": 1,
        }
        look_up = IPCCacheServerKey(**about, worker_id=None, end=whole, cache_salt=salt)
        self.client.lookup(look_up, 1).result(timeout=20)
        found = None
        while found is None:
            found = self.client.query_prefetch_status(prompt).result(timeout=20)
            time.sleep(0.01)
        if tokens := found * CHUNK:
            key = IPCCacheServerKey(**about, worker_id=0, end=tokens, cache_salt=salt)
            blocks = [list(range(1, 1 + tokens // BLOCK))]
            event = self.transfer.create_recorded_event()
            self.transfer.submit_retrieve(prompt, key, self.blocks, blocks, event, CHUNK // BLOCK).result(
                timeout=20
            )
        self.client.end_session(prompt).result(timeout=20)
        return tokens

    def side(self, layer: int, side: int, tokens: int) -> torch.Tensor:
        """The keys (0) or values (1) [H, T, D] that blocks 1, 2, … hold."""
        blocks = self.blocks[f"layer.{layer}"][1 : 1 + tokens // BLOCK, side]
        return blocks.transpose(0, 1).flatten(1, 2)


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(server: Server, model: str = "tiny") -> Worker:
        made.append(Worker(server, model))
        return made[-1]

    yield make
    for each in made:
        each.transfer.close()
        each.client.close()


def tokens_of(store: LocalStore, document: str) -> list[int]:
    return piece_of(store, document, chunk=CHUNK).token_ids


def test_a_pushed_document_is_found_by_its_tokens(
    documents: LocalStore, running: Server, worker: Callable[..., Worker]
) -> None:
    engine = worker(running)
    ids = tokens_of(documents, "a.md")
    assert engine.load(ids) == 0
    result = CliRunner().invoke(app, ["push", running.address, "--store", str(documents)])
    assert result.exit_code == 0, result.stderr
    assert "pushed 2 documents" in result.stderr
    assert "Its key leaves out" in result.stderr

    # A prompt that goes on otherwise, as a question does.
    whole = len(ids) // CHUNK * CHUNK
    assert engine.load(ids[:whole] + [5] * 100) == whole
    parts = documents.parts("a.md")
    for layer in range(LAYERS):
        for number, side in enumerate(("keys", "values")):
            expected = torch.cat([getattr(part.layer(layer), side) for part in parts], 1)[:, :whole]
            assert torch.equal(engine.side(layer, number, whole), expected)
    # Its last chunk differs in one token.
    assert engine.load([*ids[: whole - 1], 5]) == whole - CHUNK
    assert engine.load([5, *ids]) == 0
    assert engine.load(ids, "tenant") == 0

    # Nothing that was looked up is kept from being evicted.
    assert push_to_lmcache(documents, running.address, dry_run=True).unchanged == ["a.md", "b.md"]
    assert locked(running) == 0
    again = push_to_lmcache(documents, running.address)
    assert (again.copied, again.unchanged) == ([], ["a.md", "b.md"])
    salted = push_to_lmcache(documents, f"{running.address}&salt=tenant", ["a.md"])
    assert (salted.copied, salted.problems) == (["a.md"], [])
    assert engine.load(ids, "tenant") == whole
    shown("lmcache", "Llama, pushed documents", "raw")


def test_the_sdks_own_retrieve_gives_what_was_pushed(
    documents: LocalStore, running: Server, worker: Callable[..., Worker]
) -> None:
    worker(running)
    assert push_to_lmcache(documents, f"{running.address}&salt=sdk").copied == ["a.md", "b.md"]
    url, http_url = f"tcp://127.0.0.1:{running.port}", f"http://127.0.0.1:{running.http_port}"
    context = kvcache.connect(url, http_url, "tiny", 20.0)
    try:
        piece = piece_of(documents, "b.md", chunk=CHUNK)
        assert torch.equal(context.retrieve(piece.token_ids, "sdk"), piece.kv(documents))
    finally:
        context.close()


def test_pushed_documents_are_stored_by_klt_and_outlive_the_server(
    documents: LocalStore, start_server: Callable[..., Server], worker: Callable[..., Worker]
) -> None:
    serde = {"recipe": "klt", "parameters": FINE, "store": str(documents), "chunk_size": CHUNK}
    first = start_server(serde)
    worker(first)
    assert push_to_lmcache(documents, first.address).copied == ["a.md", "b.md"]
    chunks = sum(len(tokens_of(documents, name)) // CHUNK for name in ("a.md", "b.md"))
    wait_for(lambda: len(first.files) == chunks)
    first.process.terminate()
    first.process.wait(60)

    second = start_server(serde)
    for path in first.files:
        (second.folder / "l2").mkdir(exist_ok=True)
        (second.folder / "l2" / path.name).write_bytes(path.read_bytes())
    engine = worker(second)
    ids = tokens_of(documents, "b.md")
    whole = len(ids) // CHUNK * CHUNK
    assert engine.load(ids) == whole
    raw, variant = (piece_of(documents, "b.md", name, chunk=CHUNK).kv(documents) for name in ("raw", "klt"))
    for layer in range(LAYERS):
        for number in range(2):
            loaded = engine.side(layer, number, whole).transpose(0, 1).flatten(1)
            error, own = (loaded - raw[number, layer]).norm(), (variant - raw)[number, layer].norm()
            assert 0 < error <= 1.2 * own

    # A byte that flips on the disk is a miss of all that comes with it, and no wrong value.
    engine.blocks["layer.0"].zero_()
    ids = tokens_of(documents, "a.md")
    for path in second.files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert engine.load(ids) == 0
    assert not engine.blocks["layer.0"].any()
    assert "has changed since it was written (digest differs)" in second.log()


def test_a_server_that_takes_caches_from_engines_alone_is_refused(
    documents: LocalStore, start_server: Callable[..., Server]
) -> None:
    # It is the server's default.
    closed = start_server(mode="lmcache_driven")
    result = CliRunner().invoke(app, ["push", closed.address, "--store", str(documents)])
    assert (result.exit_code, "--supported-transfer-mode auto" in result.stderr) == (1, True)


def test_nothing_is_sent_as_a_pickle(
    documents: LocalStore, running: Server, worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(running)
    before = len(running.files)
    # As on another machine: the SDK cannot open the server's memory, and falls back.
    monkeypatch.setattr("lmcache.v1.multiprocess.transfer_context.shm.shared_memory.SharedMemory", missing)
    report = push_to_lmcache(documents, f"{running.address}&salt=pickles", ["a.md"])
    assert "sends pickles" in str(report.problems[0])
    assert len(running.files) == before


def locked(server: Server) -> int:
    with urlopen(f"http://127.0.0.1:{server.http_port}/status", timeout=20) as answer:
        status = json.load(answer)
    return int(status["storage_manager"]["l1_manager"]["read_locked_count"])


def missing(*_: Any, **__: Any) -> None:
    raise FileNotFoundError("no such segment")


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
