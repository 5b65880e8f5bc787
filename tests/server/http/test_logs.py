"""The log: a line for each request, and nothing in it that people wrote."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvtool.engines.batching.shared_prefix import SequenceBatch
from kvtool.server.app import create_app
from kvtool.server.http import logs
from kvtool.server.runtime.cache_memory import CacheMemory
from kvtool.server.runtime.service import Service

SECRET = "xylophone"


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.LineFormatter(as_json=True))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler, logger = Lines(), logging.getLogger("kvtool")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def ask(client: TestClient, **more: Any) -> Any:
    body = {"model": "served", "prompt": f"{SECRET} one two", "max_tokens": 4, "temperature": 0, **more}
    return client.post("/v1/completions?key=query-word", json=body)


def test_a_line_says_what_was_done(client: TestClient, lines: list[str]) -> None:
    answer = ask(client, documents=["docs/a.txt"])
    (line,) = map(json.loads, lines)
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
    service: Service, lines: list[str], monkeypatch: pytest.MonkeyPatch, stream: bool
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
    assert len(lines) >= 8
    assert SECRET not in "\n".join(lines)
    assert "query-word" not in "\n".join(lines)
    assert Path(__file__).name in json.loads(lines[-1])["error"]


def test_a_path_cannot_add_a_line(client: TestClient, lines: list[str]) -> None:
    client.get("/v1/models/a%0a2026 status=200")
    (line,) = lines
    assert json.loads(line)["path"] == "/v1/models/a%0a2026%20status=200"
