"""Which variant is loaded, and whether prefilling is sooner done: by what was measured, unless it was said."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.ask import ask
from kvtool.blending.blend import BlendOptions
from kvtool.codecs import Calibration
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import (
    LoadEstimate,
    LoadOptions,
    finest_within,
    shared_variants,
    should_prefill,
)
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from kvtool.system import throughput
from kvtool.system.throughput import Rate, Throughput
from tests.server import asking
from tests.server.asking import LIMITS, QUESTION

ESTIMATES = [
    LoadEstimate("klt", 10, fetch_seconds=0.1, decode_seconds=0.4),
    LoadEstimate("raw", 800, fetch_seconds=4.0),
    LoadEstimate("tiny", 2, decode_seconds=0.1),
    LoadEstimate("cachegen", 50, fetch_seconds=1.0),
]


@pytest.mark.parametrize(
    ("max_seconds", "variant"),
    [
        (None, "raw"),
        (5.0, "raw"),
        (4.0, "raw"),
        (3.9, "cachegen"),
        (0.6, "klt"),
        (0.2, "tiny"),
        (0.0, "tiny"),
    ],
)
def test_the_finest_that_is_in_time(max_seconds: float | None, variant: str) -> None:
    assert finest_within(ESTIMATES, max_seconds).variant == variant


def test_raw_is_the_finest_whatever_its_bytes() -> None:
    assert finest_within([LoadEstimate("raw", 1), LoadEstimate("klt", 2)], None).variant == "raw"


@pytest.mark.parametrize(
    ("load", "prefill", "is_exact", "max_load_seconds", "expected"),
    [
        (3.0, 1.0, True, None, True),
        (1.5, 1.0, True, None, False),
        (1.5, 1.0, True, 2.0, False),
        (1.5, 1.0, False, 2.0, True),
        (1.5, 1.0, False, 0.5, False),
        (0.0, 0.0, True, None, False),
        (math.inf, math.inf, False, 1.0, False),
    ],
)
def test_prefilling_is_far_sooner_done_or_exact_in_time(
    load: float, prefill: float, is_exact: bool, max_load_seconds: float | None, expected: bool
) -> None:
    assert should_prefill(load, prefill, is_exact=is_exact, max_load_seconds=max_load_seconds) is expected


def test_rates_follow_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now)
    found = Rate(lasts=10)
    assert found.seconds(100) == 0
    found.took(100, 1.0)
    assert found.seconds(50) == 0.5
    found.took(300, 1.0)
    assert found.seconds(200) == 1.0
    now = 11.0
    assert found.seconds(200) == 0
    found.took(10, 1.0)
    assert found.seconds(10) == 1.0


def test_short_passes_say_nothing_of_prefill() -> None:
    found = Throughput()
    found.prefilled(8, 1.0)
    assert found.prefill.seconds(1) == math.inf
    found.prefilled(1000, 1.0)
    assert found.prefill.seconds(500) == 0.5


@pytest.fixture
def service(served: kvtool.Model, documents: LocalStore, calibrated: Calibration) -> Service:
    service = Service.over(documents.root, served, LIMITS, loading=LoadOptions(max_load_seconds=1.0))
    # What tiny models do is measured over and over, and is up to the machine: here it is said.
    service.scheduler.on_pass = lambda *_: None
    known = service.caches.throughput
    for variant, bytes_per_second in (("raw", 1e3), ("centred", 1e9)):
        known.load(variant).took(int(bytes_per_second), 1.0)
    known.prefill = Rate(1.0)
    return service


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def chat(client: TestClient, *names: str, question: str = QUESTION) -> tuple[str, int]:
    """The answer, and how many tokens were cached."""
    answer = asking.chat(client, question, documents=list(names) or None)
    return asking.text_of(answer), asking.cached_tokens(answer)


def said_alone(model: kvtool.Model, store: LocalStore, variant: str, *names: str) -> str:
    return ask(QUESTION, list(names), model, store, variant=variant, max_tokens=12).text


def variants_in_memory(service: Service, store: LocalStore, name: str) -> set[str]:
    held = {digest for key in service.memory._entries for digest in key}
    (segment,) = store[name].segments
    return {name for name, variant in segment.variants.items() if variant.artifact in held}


def test_a_coarser_one_is_loaded_to_be_in_time(
    client: TestClient, service: Service, served: kvtool.Model, documents: LocalStore
) -> None:
    answer, cached = chat(client, "docs/a.txt")
    assert cached > 0
    assert answer == said_alone(served, documents, "centred", "docs/a.txt")
    assert variants_in_memory(service, documents, "docs/a.txt") == {"centred"}
    assert 'kvtool:cache_sources_total{source="centred"} 1.0' in client.get("/metrics").text


def test_what_is_in_memory_is_there_in_time(
    client: TestClient, service: Service, documents: LocalStore
) -> None:
    chat(client, "docs/a.txt@raw")
    assert variants_in_memory(service, documents, "docs/a.txt") == {"raw"}
    chat(client, "docs/a.txt")
    assert variants_in_memory(service, documents, "docs/a.txt") == {"raw"}


def test_prefilling_that_is_in_time_is_done_once(
    client: TestClient, service: Service, served: kvtool.Model, documents: LocalStore
) -> None:
    service.caches.throughput.prefill = Rate(1e6)
    first, second = chat(client, "docs/a.txt"), chat(client, "docs/a.txt")
    assert first[0] == second[0] == said_alone(served, documents, "raw", "docs/a.txt")
    assert first[1] == 0
    assert second[1] == len(documents.load("docs/a.txt", served).token_ids)
    assert variants_in_memory(service, documents, "docs/a.txt") == set()
    assert 'kvtool:cache_sources_total{source="prefilled"} 1.0' in client.get("/metrics").text


def test_several_are_prefilled_where_that_is_sooner(
    client: TestClient, service: Service, served: kvtool.Model, documents: LocalStore
) -> None:
    names = ("docs/a.txt", "docs/b.txt")
    assert chat(client, *names)[1] > 0
    service.caches.throughput.prefill = Rate(1e6)
    answer, cached = chat(client, *names)
    assert cached == 0
    alone = ask(QUESTION, list(names), served, documents, options=BlendOptions(1.0), max_tokens=12)
    assert answer == alone.text


def test_a_document_after_another_prefix_is_prefilled_where_that_is_sooner(
    client: TestClient, service: Service
) -> None:
    system, user = ({"role": role, "content": QUESTION} for role in ("system", "user"))
    more = {"documents": ["docs/a.txt"], "messages": [system, user]}
    assert asking.cached_tokens(asking.chat(client, **more)) > 0
    service.caches.throughput.prefill = Rate(1e6)
    # What is prefilled of it under its own prefix is of no use.
    chat(client, "docs/a.txt")
    answer = asking.chat(client, **more)
    assert asking.cached_tokens(answer) == 0
    assert asking.text_of(answer) == asking.text_of(asking.chat(client, **more, use_cache=False))


def test_what_a_prompt_begins_with_is_prefilled_where_that_is_sooner(
    client: TestClient, service: Service, documents: LocalStore
) -> None:
    text = f"{Path('docs/c.txt').read_text()}\n{QUESTION}"
    service.caches.throughput.prefill = Rate(1e6)
    answer, cached = chat(client, question=text)
    assert cached == 0
    service.caches.throughput.prefill = Rate(1e-6)
    loaded, cached = chat(client, question=text)
    assert cached > 0
    assert loaded == answer


@pytest.mark.parametrize("variant", ["raw", "centred"])
def test_a_variant_that_was_said_is_loaded(
    served: kvtool.Model, documents: LocalStore, calibrated: Calibration, variant: str
) -> None:
    service = Service.over(documents.root, served, LIMITS, loading=LoadOptions(variant))
    service.caches.throughput.prefill = Rate(1e9)
    service.caches.throughput.load(variant).took(1, 1.0)
    with TestClient(create_app(service)) as client:
        answer, cached = chat(client, "docs/a.txt")
    assert cached > 0
    assert answer == said_alone(served, documents, variant, "docs/a.txt")


def test_variants_made_for_blending_stand_in_for_others(documents: LocalStore) -> None:
    document = documents["docs/a.txt"]
    raw = document.segments[0].variants["raw"]
    for name in ("averaged", "klt", "klt-averaged", "mine"):
        document = document.with_variant(0, name, raw)
    assert shared_variants([document]) == ["klt", "mine", "raw"]
    assert shared_variants([document, documents["docs/b.txt"]]) == ["raw"]
