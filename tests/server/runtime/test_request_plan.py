"""A plan says what a request takes before any of it is loaded, and is carried out as it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.blending.layout import Cached
from kvtool.blending.save import save_blend
from kvtool.engines.sampling import Sampling
from kvtool.model.conversation import Message
from kvtool.server.http.errors import ApiError
from kvtool.server.runtime.cache_sources import Blended, Stored, Uncached
from kvtool.server.runtime.request import ConversationPrompt, Request, TokenPrompt
from kvtool.server.runtime.request_plan import RequestPlan
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import chat


@contextmanager
def named(name: str) -> Iterator[Cached]:
    yield Cached(name)


def asked(*names: str, content: str = "How many?", **more: Any) -> Request:
    fields: dict[str, Any] = {
        "prompt": ConversationPrompt([Message("user", content)], {}),
        "samplings": [Sampling(), Sampling()],
        "max_tokens": 12,
        "stop": [],
        "documents": [partial(named, name) for name in names] or None,
        "recompute": 0.5,
        "policy": "cacheblend",
        "use_cache": True,
    }
    return Request(**fields | more)


def planned(service: Service, *names: str, **more: Any) -> RequestPlan:
    documents = [Cached(name) for name in names] or None
    return service.planner.plan(asked(*names, **more), documents, service.tenants[""])


def test_nothing_is_loaded_for_a_plan(service: Service) -> None:
    planned(service, "docs/a.txt")
    planned(service, "docs/a.txt", "docs/b.txt")
    assert service.memory.used == 0
    assert service.metrics.queries._value.get() == 0
    assert not service.tenants[""].hits


def test_a_document_alone_is_loaded(service: Service, documents: LocalStore, served: kvtool.Model) -> None:
    plan = planned(service, "docs/a.txt")
    (source,) = plan.sources
    assert isinstance(source, Stored)
    cached = documents.load("docs/a.txt", served).token_ids.tolist()
    assert plan.token_ids[: source.tokens] == cached
    rest = len(plan.token_ids) - len(cached)
    assert source.nbytes == service.caches.token_bytes * 2 * (rest + 12)
    assert (source.documents, source.variant, plan.max_tokens) == (("docs/a.txt",), "raw", 12)


def test_an_old_blend_is_named_in_the_log(
    service: Service, documents: LocalStore, served: kvtool.Model, caplog: pytest.LogCaptureFixture
) -> None:
    save_blend("both", ["docs/a.txt", "docs/b.txt"], served, documents)
    planned(service, "both")
    assert not caplog.messages
    for text in ("Eight ships.", "Nine ships."):
        Path("docs/a.txt").write_text(text)
        kvtool.prefill(["docs"], model=served, store=documents)
        for _ in range(2):
            planned(service, "both")
            planned(service, "docs/a.txt", "both")
        # Each time that it gets old, and not with each request.
        old = "both: is a blend, and docs/a.txt has changed since; kvtool blend makes it again"
        assert caplog.messages == [old]
        caplog.clear()
        save_blend("both", ["docs/a.txt", "docs/b.txt"], served, documents)
        planned(service, "both")
        assert not caplog.messages


def test_a_variant_that_is_missing_is_the_clients_mistake(client: TestClient) -> None:
    error = chat(client, documents=["docs/a.txt@nope"], status=404)["error"]
    assert (error["param"], error["code"]) == ("documents", "variant_not_found")
    assert (
        error["message"] == "docs/a.txt: has no variant 'nope', only raw; name one of these after @, or none"
    )


def test_several_are_blended(service: Service) -> None:
    plan = planned(service, "docs/a.txt", "docs/b.txt")
    (source,) = plan.sources
    assert isinstance(source, Blended)
    assert plan.token_ids == [*source.layout.token_ids.tolist(), *source.question]
    assert source.blending.recompute == 0.5


def test_a_cached_beginning_may_turn_out_to_be_broken(
    service: Service, documents: LocalStore, texts: dict[str, str]
) -> None:
    plan = planned(service, content=f"{texts['docs/a.txt']}\n\nHow many?")
    stored, uncached = plan.sources
    assert isinstance(stored, Stored)
    assert isinstance(uncached, Uncached)
    assert (stored.tokens > 64, uncached.tokens) == (True, 0)
    path = documents.path_of(documents["docs/a.txt"].segments[0].variants["raw"])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with service.caches.opened(plan.sources, service.tenants[""]) as opened:
        assert opened.tokens == opened.cached_tokens == 0
    assert not service.tenants[""].hits


def test_without_caches_everything_is_prefilled(service: Service, texts: dict[str, str]) -> None:
    cached = planned(service, "docs/a.txt")
    for plan in (
        planned(service, "docs/a.txt", use_cache=False),
        planned(service, content=texts["docs/a.txt"], use_cache=False),
    ):
        (source,) = plan.sources
        assert isinstance(source, Uncached)
        assert source.documents == ()
        assert source.prompt_tokens == len(plan.token_ids)
    assert planned(service, "docs/a.txt", use_cache=False).token_ids == cached.token_ids


def test_an_answer_is_no_longer_than_there_is_room(service: Service) -> None:
    tokens = TokenPrompt([1] * 2000)
    assert planned(service, prompt=tokens, max_tokens=None).max_tokens == 48
    with pytest.raises(ApiError, match="the prompt has 2000, and 49 were asked for") as error:
        planned(service, prompt=tokens, max_tokens=49)
    assert (error.value.param, error.value.code) == ("prompt", "context_length_exceeded")
