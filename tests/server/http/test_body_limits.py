"""Bounds on the bodies of requests."""

from __future__ import annotations

import time

import pytest
from starlette.testclient import TestClient

from kvtool import limits
from tests.server.asking import chat


def test_a_body_of_a_million_mistakes(client: TestClient) -> None:
    started = time.monotonic()
    wrong = ",".join(f'"{number}":1' for number in range(500_000))
    answer = client.post("/v1/completions", content=f"{{{wrong}}}")
    assert answer.status_code == 400
    assert time.monotonic() - started < 5


def test_bodies_together_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS_BYTES", 50)
    chat(client, status=503)
    monkeypatch.setattr(limits, "REQUESTS_BYTES", 500)
    for _ in range(10):
        chat(client)
