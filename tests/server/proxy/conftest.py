"""The proxy over ``documents``, before an engine that records what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import pytest

import kvtool
from kvtool.server.proxy.app import create_proxy
from kvtool.server.proxy.engine import Engine
from kvtool.server.proxy.prompts import Prompts
from kvtool.store import prefix_index
from kvtool.store.local import LocalStore
from tests.server.proxy.engine import FakeEngine


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is looked at for every request."""
    monkeypatch.setattr(prefix_index, "FRESH", 0.0)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def prompts(documents: LocalStore, served: kvtool.Model) -> Prompts:
    return Prompts(documents, served)


@pytest.fixture
def proxy(
    engine: FakeEngine, prompts: Prompts, listening: Callable[..., AbstractContextManager[str]]
) -> Iterator[httpx.Client]:
    """A client of the proxy."""
    with (
        listening(engine.app) as url,
        listening(create_proxy(Engine(f"{url}/v1/"), prompts)) as proxy,
        httpx.Client(base_url=proxy) as client,
    ):
        yield client
