"""Chat templates that print the time: a store keeps the time that its first documents were prefilled at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import kvtool
from kvtool.ask import ask
from kvtool.blending.save import save_blend
from kvtool.evaluation.evaluation import evaluate
from kvtool.measurement.scope import Scope
from kvtool.model import chat_template
from kvtool.model.chat_template import SEPARATOR, prefix_of, time_of
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS, cached_tokens, chat, text_of
from tests.server.cached_contents.cached import make, ready

FIRST_DAY = datetime(2026, 11, 28, 23, 59, 58)

WORDS = "The mill by the river grinds rye on Mondays, and wheat on all other days of the week. "

QUESTION = "\n\nWhen is rye ground?"


@pytest.fixture(scope="module", params=["%d %b %Y", "%H:%M:%S"])
def dated(request: Any, make_model: Callable[..., Path], tmp_path_factory: Any) -> kvtool.Model:
    """A tiny model whose template prints the date, or the time, before everything else."""
    directory = make_model(tmp_path_factory.mktemp("models") / "dated", max_position_embeddings=2048)
    template = directory / "chat_template.jinja"
    head = "{{ 'Today: ' + strftime_now('" + request.param + "') + '\\n' }}"
    template.write_text(head + template.read_text())
    return kvtool.load_model(directory, device="cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the time that kvtool sees."""

    def set_to(now: datetime) -> None:
        class Stopped(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return now

        monkeypatch.setattr(chat_template, "datetime", Stopped)

    set_to(FIRST_DAY)
    return set_to


@pytest.fixture
def store(dated: kvtool.Model, clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """One document of the first day. It is the second day, a second after midnight."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(WORDS * 3)
    store = LocalStore("kv-store")
    assert kvtool.prefill("a.txt", model=dated, store=store).prefilled == ["a.txt"]
    clock(FIRST_DAY + timedelta(seconds=3))
    return store


def test_the_next_day_nothing_is_left_to_do(dated: kvtool.Model, store: LocalStore) -> None:
    report = kvtool.prefill("a.txt", model=dated, store=store)
    assert (report.unchanged, report.problems) == (["a.txt"], [])


def test_a_stored_blend_is_used_and_kept_the_next_day(
    dated: kvtool.Model, store: LocalStore, clock: Callable[[datetime], None]
) -> None:
    Path("b.txt").write_text(WORDS[:40])
    kvtool.prefill("b.txt", model=dated, store=store)
    assert not save_blend("both", ["a.txt", "b.txt"], dated, store).is_unchanged
    clock(FIRST_DAY + timedelta(days=2))
    assert save_blend("both", ["a.txt", "b.txt"], dated, store).is_unchanged
    apart = kvtool.blend(store, ["a.txt", "b.txt"], dated, separator=SEPARATOR)
    assert torch.equal(store.load("both", dated).token_ids, apart.token_ids)
    answers = [ask("When?", names, dated, store, max_tokens=4) for names in ("both", ["a.txt", "b.txt"])]
    assert answers[0].prompt_tokens == answers[1].prompt_tokens
    assert answers[0].cached_tokens == len(apart.token_ids)


def test_documents_of_two_days_are_blended(dated: kvtool.Model, store: LocalStore) -> None:
    Path("b.txt").write_text(WORDS[:40])
    kvtool.prefill("b.txt", model=dated, store=store)
    assert store["b.txt"].prefix == store["a.txt"].prefix
    cache = kvtool.blend(store, ["a.txt", "b.txt"], dated, recompute=1)
    ids = cache.token_ids[None]
    full = dated.model(ids).logits[0, -1]
    cache.crop(-1)
    torch.testing.assert_close(dated.model(ids[:, -1:], past_key_values=cache).logits[0, -1], full)


def test_a_saved_blend_is_loaded_the_next_day(dated: kvtool.Model, store: LocalStore, clock: Any) -> None:
    Path("b.txt").write_text(WORDS[:40])
    kvtool.prefill("b.txt", model=dated, store=store)
    kvtool.blend(store, ["a.txt", "b.txt"], dated, recompute=1).save(store, "both", dated)
    clock(FIRST_DAY + timedelta(days=9))
    assert store.load("both", dated).get_seq_length() == len(store.open("both").token_ids) + len(
        prefix_of(dated, now=FIRST_DAY).token_ids
    )


def test_neighbours_of_another_day(dated: kvtool.Model, store: LocalStore) -> None:
    Path("b.txt").write_text(WORDS * 2)
    report = kvtool.prefill(["a.txt", "b.txt"], model=dated, store=store, neighbours=1)
    assert (sorted(report.averaged), report.problems) == (["a.txt", "b.txt"], [])


def test_an_evaluation_the_next_day(dated: kvtool.Model, store: LocalStore) -> None:
    scope = Scope(metrics=("kl",), context=128, tokens=16)
    result = evaluate(store, model=dated, recipes=["lossless"], scope=scope)
    assert result["candidates"][1]["kl"]["value"] == 0


def test_another_system_prompt_gets_the_same_time(dated: kvtool.Model, store: LocalStore) -> None:
    Path("b.txt").write_text(WORDS)
    kvtool.prefill("b.txt", model=dated, store=store, system="Be brief.")
    assert time_of(store["b.txt"].prefix["origin"]) == FIRST_DAY


def test_a_store_of_its_own_has_its_own_time(dated: kvtool.Model, store: LocalStore, tmp_path: Path) -> None:
    other = LocalStore("other")
    kvtool.prefill("a.txt", model=dated, store=other)
    assert other["a.txt"].prefix["digest"] != store["a.txt"].prefix["digest"]
    assert time_of(other["a.txt"].prefix["origin"]) == FIRST_DAY + timedelta(seconds=3)


def test_a_store_that_does_not_know_its_time(dated: kvtool.Model, store: LocalStore) -> None:
    """As earlier versions wrote it: its tokens are what counts."""
    document = store["a.txt"]
    origin = {"kind": "chat", "system": None}
    store.commit(replace(document, prefix={**document.prefix, "origin": origin}))
    Path("b.txt").write_text(WORDS)
    report = kvtool.prefill(["a.txt", "b.txt"], model=dated, store=store)
    assert (report.unchanged, report.prefilled, report.problems) == (["a.txt"], ["b.txt"], [])
    assert kvtool.blend(store, ["b.txt", "a.txt"], dated).get_seq_length()


def test_a_template_without_the_time_stores_none(tiny: kvtool.Model) -> None:
    assert prefix_of(tiny).origin == {"kind": "chat", "system": None}


@pytest.fixture
def client(dated: kvtool.Model, store: LocalStore) -> Any:
    service = Service.over(store.root, dated, LIMITS, loading=LoadOptions(variant="raw"))
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def test_a_chat_finds_the_documents_of_the_day_before(client: TestClient) -> None:
    content = WORDS * 3 + QUESTION
    answer = chat(client, content, model="dated")
    assert cached_tokens(answer) >= 3 * len(WORDS.split())
    again = chat(client, QUESTION, model="dated", documents=["a.txt"])
    assert text_of(again) == text_of(answer)


def test_a_chat_about_no_document_has_the_present_time(client: TestClient, dated: kvtool.Model) -> None:
    answer = chat(client, "Which day is it?", model="dated")
    assert cached_tokens(answer) == 0
    head = len(prefix_of(dated).token_ids)
    assert answer["usage"]["prompt_tokens"] > head


def test_cached_contents_of_two_days_share_a_prefix(
    client: TestClient, store: LocalStore, clock: Any
) -> None:
    first = make(client, WORDS, model="dated")
    ready(client, first)
    clock(FIRST_DAY + timedelta(days=1))
    second = make(client, WORDS * 2, model="dated")
    ready(client, second)
    assert chat(client, QUESTION, model="dated", documents=[first["name"], second["name"]])
