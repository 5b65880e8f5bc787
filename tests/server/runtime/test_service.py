"""The service runs the model when it is told to, and only for what is not known."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.model.prefill_speed import remember
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS


@pytest.fixture
def passes(served: kvtool.Model) -> Any:
    """The sizes of the model's passes."""
    sizes: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        sizes.append(int(ids.shape[-1]))

    hook = served.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    yield sizes
    hook.remove()


def test_only_warming_up_runs_the_model_and_once(
    served: kvtool.Model, documents: LocalStore, passes: list[int], cache: Any
) -> None:
    passes.clear()
    service = Service.over(documents.root, served, LIMITS)
    app = create_app(service)
    assert passes == []
    service.warm_up()
    assert 256 in passes
    assert not service.caches.throughput.prefill.is_unknown
    passes.clear()
    service.warm_up()
    with TestClient(app):
        pass
    assert passes == []


def test_starting_the_application_warms_up(
    served: kvtool.Model, documents: LocalStore, passes: list[int], cache: Any
) -> None:
    service = Service.over(documents.root, served, LIMITS)
    passes.clear()
    with TestClient(create_app(service)):
        assert 256 in passes
        assert service.caches.token_bytes > 0


@pytest.mark.parametrize("is_known", [True, False])
def test_a_speed_that_nobody_needs_or_that_is_known_is_not_measured(
    served: kvtool.Model, documents: LocalStore, passes: list[int], cache: Any, is_known: bool
) -> None:
    if is_known:
        remember(served.fingerprint, 1000, 1.0)
    loading = LoadOptions() if is_known else LoadOptions("raw")
    service = Service.over(documents.root, served, LIMITS, loading=loading)
    passes.clear()
    service.warm_up()
    assert passes
    assert 256 not in passes
