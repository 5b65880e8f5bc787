"""Pruned variants: answers are those of ``kvtool ask``, and memory is that of the tokens that are held."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.ask import ask
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached, chosen_document
from kvtool.engines.generate import generate
from kvtool.model.conversation import Message, chat_tokens
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from kvtool.system.throughput import Rate
from tests.server.asking import LIMITS, QUESTION, cached_tokens, chat, text_of

KEEP = 0.3
VARIANTS = {
    "across": ("kvzip", {"heads": "across"}),
    "alike": ("keydiff", {"heads": "tokens"}),
    "coded": ("kvzip+kivi", {"heads": "across", "bits": 4, "recent": 0}),
}
"""Heads that hold different tokens, heads that hold the same ones, and pruned tokens in few bits."""

NAMES = [f"{n}.txt" for n in range(12)]
MEMORY = 800_000
"""Bytes of three raw caches and a request."""


@pytest.fixture(scope="module")
def pruned(served: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """Documents of about 650 tokens, with all of ``VARIANTS``."""
    folder, numbers = tmp_path_factory.mktemp("pruned"), random.Random(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in NAMES:
            pairs = [(numbers.randrange(900), numbers.randrange(90)) for _ in range(20)]
            text = " ".join(f"The mill of street {street} takes {price}." for street, price in pairs)
            Path(name).write_text(text)
        kvtool.prefill(NAMES, model=served, store=LocalStore("kv-store"))
        for variant, (recipe, parameters) in VARIANTS.items():
            store = LocalStore("kv-store")
            kvtool.compress(store, recipe=recipe, name=variant, model=served, keep=KEEP, **parameters)
    return LocalStore(folder / "kv-store")


def serve(store: LocalStore, model: kvtool.Model, variant: str, memory: int = MEMORY) -> Service:
    limits = replace(LIMITS, memory=memory)
    return Service.over(store.root, model, limits, loading=LoadOptions(variant))


def held(service: Service) -> int:
    """The number of caches in memory, none of which is in use: each takes what is counted for it."""
    entries = service.memory._entries.values()
    assert all(entry.cache.result().nbytes == entry.nbytes for entry in entries)
    assert sum(entry.nbytes for entry in entries) == service.memory.used <= service.memory.limit
    return len(entries)


def test_sixteen_clients_are_answered_as_ask_answers(pruned: LocalStore, served: kvtool.Model) -> None:
    """All variants at once, two questions to each, in too little memory for all."""
    questions = [QUESTION, "Which street is it?"]
    asked = [(q, name, v) for v in ("raw", *VARIANTS) for name in NAMES[:4] for q in questions]
    expected = [ask(q, name, served, pruned, variant=v, max_tokens=12).text for q, name, v in asked]
    service = serve(pruned, served, "raw")
    with TestClient(create_app(service)) as client, ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda one: chat(client, one[0], documents=[f"{one[1]}@{one[2]}"]), asked)
        assert [text_of(answer) for answer in answers] == expected
        assert 0 < held(service) < 16
    assert len(set(expected)) > 16


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_times_as_many_stay_in_memory(pruned: LocalStore, served: kvtool.Model, variant: str) -> None:
    counts = []
    for each in ("raw", variant):
        service = serve(pruned, served, each)
        with TestClient(create_app(service)) as client:
            for name in NAMES:
                chat(client, documents=[name], max_tokens=2)
            counts.append(held(service))
    assert counts[0] == 3
    assert counts[1] >= 3 * counts[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_conversation_goes_on_after_a_pruned_document(
    pruned: LocalStore, served: kvtool.Model, variant: str
) -> None:
    text = (pruned.root.parent / NAMES[0]).read_text()
    turns = [Message("user", QUESTION), Message("assistant", "Seven."), Message("user", "And mills?")]
    first, *rest = turns
    ids = chat_tokens(served, [Message("user", f"{text}\n\n{first.content}"), *rest])
    cache = pruned.load(NAMES[0], served, variant=variant)
    n_cached = len(cache.token_ids)
    expected = served.tokenizer.decode(generate(served, ids, cache, max_tokens=12), skip_special_tokens=True)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    with TestClient(create_app(serve(pruned, served, variant))) as client:
        answer = chat(client, documents=[NAMES[0]], messages=messages)
    assert (text_of(answer), cached_tokens(answer)) == (expected, n_cached)


def test_a_beginning_that_is_found_is_never_taken_from_a_pruned_cache(
    pruned: LocalStore, served: kvtool.Model
) -> None:
    """The whole document, and a part of it: both are what a prefill gives, whatever the server loads."""
    text = (pruned.root.parent / NAMES[1]).read_text()
    service = serve(pruned, served, "across")
    with TestClient(create_app(service)) as client:
        chat(client, documents=[NAMES[1]])
        for content in (f"{text}\n\n{QUESTION}", f"{text[:400]} and so on."):
            answer, anew = (chat(client, content, use_cache=use) for use in (True, False))
            assert text_of(answer) == text_of(anew)
            assert cached_tokens(answer) >= 400
        assert held(service) == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_among_others_it_is_asked_as_ask_does(pruned: LocalStore, served: kvtool.Model, variant: str) -> None:
    names = [NAMES[0], f"{NAMES[1]}@{variant}"]
    parts = [chosen_document(pruned, name) for name in names]
    expected = ask(QUESTION, parts, served, pruned, options=BlendOptions(0), max_tokens=12)
    with TestClient(create_app(serve(pruned, served, "raw"))) as client:
        answer = chat(client, documents=names, recompute=0)
        error = chat(client, status=400, documents=names)["error"]
    assert text_of(answer) == expected.text
    assert cached_tokens(answer) == expected.cached_tokens - expected.recomputed_tokens
    assert error["message"].startswith(f"{NAMES[1]}: was pruned")


def test_what_must_be_recomputed_is_not_loaded_pruned_by_itself(
    pruned: LocalStore, served: kvtool.Model
) -> None:
    """The server chooses among variants: of several documents, a pruned one only if none of its tokens is recomputed."""
    service = Service.over(pruned.root, served, LIMITS, loading=LoadOptions(max_load_seconds=1.0))
    for variant in ("raw", *VARIANTS):
        service.caches.throughput.load(variant).took(1e9 if variant == "alike" else 1e3, 1.0)
    service.caches.throughput.prefill = Rate(1.0)
    one, two = ([Cached(name) for name in NAMES[:n]] for n in (1, 2))
    tenant = service.tenants[""]
    chosen = [
        service.planner.policy.choose(documents, BlendOptions(recompute), tenant).variant
        for documents, recompute in ((one, 0.15), (two, 0), (two, 0.15))
    ]
    assert chosen == ["alike", "alike", "raw"]
