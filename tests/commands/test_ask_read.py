"""kvtool ask --read: part of a document, by what the question needs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import kvtool
from kvtool import Store
from kvtool.errors import FAILED, USAGE
from tests.commands.conftest import Cli, error_of


@pytest.fixture
def paged(store: Store) -> Store:
    kvtool.compress(store, "c.txt", recipe="quest")
    return store


ASK = ("ask", "What?", "--doc", "c.txt", "--max-tokens", "3")


def test_ask_says_how_much_it_read(cli: Cli, paged: Store) -> None:
    result = cli(*ASK, "--read", "50%")
    assert re.search(r"from the quest cache \(31 tokens\); read [\d.]+ KB of [\d.]+ KB", result.stderr)
    answer = json.loads(cli(*ASK, "--read", "50%", "--json").stdout)
    assert answer["variants"] == ["quest"]
    assert 0 < answer["read_bytes"] <= answer["stored_bytes"]
    assert answer["answer"].rstrip("\n") == result.stdout.rstrip("\n")
    compared = json.loads(cli(*ASK, "--read", "12.5%", "--compare", "--json").stdout)
    assert compared["first_token_seconds_without_cache"] > 0


def test_all_of_it_gives_the_answer_of_the_whole(cli: Cli, paged: Store) -> None:
    whole = json.loads(cli(*ASK, "--json").stdout)
    assert json.loads(cli(*ASK, "--read", "100%", "--json").stdout)["answer"] == whole["answer"]


@pytest.mark.parametrize("share", ["0%", "25", "101%", "-5%", "nan%", "%", "a quarter"])
def test_what_is_no_share_is_refused(cli: Cli, share: str) -> None:
    error = error_of(cli(*ASK, f"--read={share}", code=USAGE))
    assert f"--read {share}: is no share of a document; expected one up to 100%, as 25% or 0.25" in error


@pytest.mark.parametrize(
    "more",
    [("And what?",), ("--doc", "docs/a.md"), ("--no-cache",)],
    ids=["questions", "documents", "no cache"],
)
def test_one_question_about_one_document(cli: Cli, paged: Store, more: tuple[str, ...]) -> None:
    error = error_of(cli(*ASK, "--read", "25%", *more, code=USAGE))
    assert "--read 25%: is for one question about one document, from its cache" in error


def test_without_pages_the_model_does_not_run(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(kvtool.Model, "model", property(never))
    missing = error_of(cli(*ASK, "--read", "25%", code=FAILED))
    assert "has no variant 'quest'" in missing
    assert "run kvtool compress c.txt --recipe quest" in missing
    other = error_of(cli(*ASK, "--read", "25%", "--variant", "raw", code=FAILED))
    assert "has no bounds of its pages" in other
    assert "run kvtool compress c.txt --recipe quest, and ask with --variant quest" in other
