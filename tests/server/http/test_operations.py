"""What the operator sees: logs without what people wrote, metrics, readiness, and how the server ends."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool import limits
from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.server.app import create_app
from kvtool.server.http import logs
from kvtool.server.http.server import listen
from kvtool.server.runtime.cache_memory import CacheMemory
from kvtool.server.runtime.service import Limits, Service
from kvtool.store.local import LocalStore

SECRET = "xylophone"
TOKENS = {"alice-secret-token-1": "alice", "metric-secret-token2": "metrics"}


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.LineFormatter(as_json=True))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def said() -> Iterator[list[str]]:
    handler, logger = Said(), logging.getLogger("kvtool")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def ask(client: TestClient, **more: Any) -> Any:
    body = {"model": "served", "prompt": f"{SECRET} one two", "max_tokens": 4, "temperature": 0, **more}
    return client.post("/v1/completions?key=query-word", json=body)


def test_a_line_says_what_was_done(client: TestClient, said: list[str]) -> None:
    answer = ask(client, documents=["docs/a.txt"])
    (line,) = map(json.loads, said)
    usage = answer.json()["usage"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["path"] == "/v1/completions"
    assert line["status"] == 200
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert line["completion_tokens"] == usage["completion_tokens"]
    assert 0 < line["time_to_first_token_seconds"] <= line["seconds"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_people_wrote_is_in_no_line(
    service: Service, said: list[str], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def broken(self: Any, *args: Any, **more: Any) -> None:
        raise ValueError(f"cannot take {SECRET}")

    headers = {"Authorization": f"Bearer {SECRET}-token"}
    with TestClient(create_app(service), headers=headers, raise_server_exceptions=False) as client:
        for wrong in ({"model": SECRET}, {SECRET: 1}, {"temperature": SECRET}, {"documents": ["x"]}, {}):
            ask(client, stream=stream, **wrong)
        client.post("/v1/completions", content=f'{{"prompt": "{SECRET}')
        with monkeypatch.context() as patch:
            patch.setattr(SequenceBatch, "feed", broken)
            failed = ask(client, stream=stream)
            assert SECRET not in failed.text
            assert failed.status_code == (200 if stream else 500)
            assert '"type": "server_error"' in failed.text.replace('":"', '": "')
        monkeypatch.setattr(CacheMemory, "reserved", broken)
        failed = ask(client)
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
    assert len(said) >= 8
    assert SECRET not in "\n".join(said)
    assert "query-word" not in "\n".join(said)
    assert "test_operations.py" in json.loads(said[-1])["error"]


def test_a_path_cannot_add_a_line(client: TestClient, said: list[str]) -> None:
    client.get("/v1/models/a%0a2026 status=200")
    (line,) = said
    assert json.loads(line)["path"] == "/v1/models/a%0a2026%20status=200"


def test_metrics_are_counted(client: TestClient) -> None:
    ask(client, documents=["docs/a.txt"])
    client.get("/v1/models/a")
    client.get("/v1/models/b")
    for path in ("x", "y", "z"):
        client.get(f"/{path}")
    found = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in found if not line.startswith("#"))
    assert values['kvtool:requests_total{path="/v1/models/{name:path}",status="404"}'] == "2.0"
    assert values['kvtool:requests_total{path="other",status="404"}'] == "3.0"
    assert float(values["kvtool:prefix_cache_hits_total"]) == 1
    assert float(values["kvtool:cached_tokens_total"]) > 10
    assert float(values["kvtool:generation_tokens_total"]) == 4
    assert float(values["kvtool:cache_read_bytes_total"]) > 1000
    assert float(values["kvtool:cache_load_seconds_count"]) == 1
    assert float(values["kvtool:time_per_output_token_seconds_count"]) == 1
    assert 0 < float(values["kvtool:cache_memory_bytes"]) < float(values["kvtool:cache_memory_limit_bytes"])


def test_metrics_are_of_all_tenants_and_for_none_of_them(served: kvtool.Model, documents: LocalStore) -> None:
    service = Service.over(documents.root, served, Limits(memory=1 << 28), names=TOKENS.values())
    with TestClient(create_app(service, TOKENS)) as client:

        def status(path: str, token: str) -> int:
            return client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code

        alice, metrics = TOKENS
        assert client.get("/metrics").status_code == 401
        assert status("/metrics", alice) == 403
        assert status("/metrics", metrics) == 200
        assert client.get("/readyz").status_code == client.get("/openapi.json").status_code == 200


def test_ready_only_while_it_is(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(service)
    # Without its context the application has not started.
    assert TestClient(app).get("/readyz").status_code == 503
    with TestClient(app) as client:
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(limits, "STUCK_SECONDS", 0.05)
        service.scheduler.call(lambda: time.sleep(0.5))
        time.sleep(0.2)
        assert client.get("/readyz").json() == {"status": "the model is stuck"}
        assert client.get("/healthz").status_code == 200
        time.sleep(0.5)
        assert client.get("/readyz").status_code == 200
        service.is_draining = True
        assert client.get("/readyz").status_code == 503


def test_a_round_that_fails_ends_no_other(client: TestClient, service: Service) -> None:
    scheduler = service.scheduler
    broken = scheduler._leave_cancelled
    scheduler._leave_cancelled = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    assert ask(client).status_code == 500
    scheduler._leave_cancelled = broken  # type: ignore[method-assign]
    assert ask(client).status_code == 200


def test_no_answer_waits_for_its_headers_to_be_acknowledged() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_body_of_a_million_mistakes(client: TestClient) -> None:
    begun = time.monotonic()
    wrong = ",".join(f'"{number}":1' for number in range(500_000))
    answer = client.post("/v1/completions", content=f"{{{wrong}}}")
    assert answer.status_code == 400
    assert time.monotonic() - begun < 5


def test_bodies_together_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS_BYTES", 50)
    assert ask(client).status_code == 503
    monkeypatch.setattr(limits, "REQUESTS_BYTES", 500)
    for _ in range(10):
        assert ask(client).status_code == 200


def test_who_left_before_the_first_event_holds_nothing(client: TestClient, service: Service) -> None:
    async def ask_and_leave() -> None:
        body = b'{"model": "served", "prompt": "One", "stream": true, "documents": ["docs/a.txt"], "max_tokens": 999}'
        come = iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            return next(come, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            raise OSError

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [],
            "query_string": b"",
        }
        with suppress(Exception):
            await client.app(scope | {"app": client.app}, receive, send)

    assert client.portal is not None
    client.portal.call(ask_and_leave)
    assert service.scheduler.running == 0
    assert not any(held.pins for held in service.memory._entries.values())


@pytest.mark.slow
def test_the_second_signal_ends_it(running: Any) -> None:
    with running("--log", "json") as server:
        asking = threading.Thread(target=_ask_for_long, args=[server.url])
        asking.start()
        _wait_until_it_runs(server)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        with pytest.raises(urllib.error.URLError):
            _get(f"{server.url}/readyz")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1
        asking.join(10)
    lines = [json.loads(line) for line in server.said[1:] if line.startswith("{")]
    assert {"/metrics"} == {line["path"] for line in lines if "path" in line}
    assert any("second signal" in line for line in server.said)


@pytest.mark.slow
def test_answers_have_so_long_to_finish(running: Any) -> None:
    with running("--drain", "1") as server:
        asking = threading.Thread(target=_ask_for_long, args=[server.url])
        asking.start()
        _wait_until_it_runs(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1
        asking.join(10)


@pytest.mark.slow
def test_killed_it_starts_again_with_all_it_had(running: Any, documents: LocalStore) -> None:
    before = {name: documents.read(name).token_ids.tolist() for name in documents}
    said = []
    for _ in range(2):
        with running() as server:
            body = {"model": "served", "prompt": "One", "documents": ["docs/a.txt"], "temperature": 0}
            request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode())
            with urllib.request.urlopen(request) as answer:
                said.append(json.load(answer)["choices"])
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(10)
    assert said[0] == said[1]
    assert {name: documents.read(name).token_ids.tolist() for name in documents} == before


def _wait_until_it_runs(server: Any) -> None:
    for _ in range(200):
        if "num_requests_running 1.0" in _get(f"{server.url}/metrics"):
            return
        time.sleep(0.05)
    raise AssertionError("".join(server.said))


def _ask_for_long(url: str) -> None:
    body = {"model": "served", "prompt": "One", "max_tokens": 2000, "temperature": 0}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    with pytest.raises(OSError, match=r"."):
        urllib.request.urlopen(request, timeout=60)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())
