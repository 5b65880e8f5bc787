"""Metrics and readiness, as the operator sees them."""

from __future__ import annotations

import time

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool import limits
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS, chat

TOKENS = {"alice-secret-token-1": "alice", "metric-secret-token2": "metrics"}


def test_metrics_are_counted(client: TestClient) -> None:
    chat(client, documents=["docs/a.txt"], max_tokens=4)
    client.get("/v1/models/a")
    client.get("/v1/models/b")
    for path in ("x", "y", "z"):
        client.get(f"/{path}")
    shown = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in shown if not line.startswith("#"))
    assert values['kvtool:requests_total{path="/v1/models/{name:path}",status="404"}'] == "2.0"
    assert values['kvtool:requests_total{path="other",status="404"}'] == "3.0"
    assert float(values["kvtool:prefix_cache_hits_total"]) == 1
    assert float(values["kvtool:cached_tokens_total"]) > 10
    assert float(values["kvtool:generation_tokens_total"]) == 4
    assert float(values["kvtool:cache_read_bytes_total"]) > 1000
    assert float(values["kvtool:cache_load_seconds_count"]) == 1
    assert float(values["kvtool:time_per_output_token_seconds_count"]) == 1
    assert float(values["kvtool:cache_memory_caches"]) == 1
    assert 0 < float(values["kvtool:cache_memory_bytes"]) < float(values["kvtool:cache_memory_limit_bytes"])


def test_metrics_are_of_all_tenants_and_for_none_of_them(served: kvtool.Model, documents: LocalStore) -> None:
    service = Service.over(documents.root, served, LIMITS, names=TOKENS.values())
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
