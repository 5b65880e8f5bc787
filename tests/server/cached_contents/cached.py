"""Cached contents, made and asked about over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from kvtool.server.cached_contents.store import Contents
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore

TEXT = "The mill by the river grinds rye on Mondays, and wheat on all other days.\n" * 3

LONG = "".join(f"Line {n}: the harbour has {n * 7 % 11} ships and {n * 5 % 13} boats.\n" for n in range(30))

SYSTEM = {"parts": [{"text": "Answer in one word."}]}


def body(text: str = TEXT, **more: Any) -> dict[str, Any]:
    return {"model": "served", "contents": [{"role": "user", "parts": [{"text": text}]}], **more}


def make(client: TestClient, text: str = TEXT, **more: Any) -> Any:
    answer = client.post("/v1/cachedContents", json=body(text, **more))
    assert answer.status_code == 200, answer.text
    return answer.json()


def ready(client: TestClient, made: Any, state: str = "ACTIVE") -> Any:
    path = f"/v1/{made['name']}"
    content = until(lambda: client.get(path).json(), lambda content: content["state"] != "PROCESSING")
    assert content["state"] == state, content
    return content


def until(look: Callable[[], Any], is_right: Callable[[Any], bool]) -> Any:
    for _ in range(600):
        value = look()
        if is_right(value):
            return value
        time.sleep(0.02)
    raise AssertionError(value)


def contents_of(client: TestClient) -> Contents:
    contents: Contents = client.app.state.contents[""]  # type: ignore[attr-defined]
    return contents


def files(store: LocalStore) -> set[Path]:
    return {path for path in store.root.rglob("*") if path.is_file()}


@contextmanager
def held_up(service: Service) -> Iterator[None]:
    """The model does nothing within the context."""
    go_on = threading.Event()
    service.scheduler.call(go_on.wait)
    try:
        yield
    finally:
        go_on.set()
