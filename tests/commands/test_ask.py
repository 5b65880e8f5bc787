"""kvtool ask: over one document, one of several segments, and several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool import Store
from kvtool import ask as module
from kvtool.ask import Answer
from kvtool.commands.ask import faster, render
from kvtool.errors import USAGE
from kvtool.model.prefill_speed import remember
from tests.commands.conftest import Cli, error_of, typed


def test_ask(cli: Cli, store: Store) -> None:
    arguments = ("ask", "What?", "--doc", "c.txt", "--max-tokens", "3")
    answer = json.loads(cli(*arguments, "--json").stdout)
    assert typed(answer) == {
        "documents": ["str"],
        "variants": ["str"],
        "policy": "str",
        "recomputed_tokens": "int",
        "answer": "str",
        "answer_tokens": "int",
        "prompt_tokens": "int",
        "cached_tokens": "int",
        "read_bytes": None,
        "stored_bytes": None,
        "load_seconds": "float",
        "first_token_seconds": "float",
        "first_token_seconds_without_cache": None,
    }
    assert answer["cached_tokens"] == 31
    streamed = cli(*arguments)
    assert streamed.stdout.rstrip("\n") == answer["answer"].rstrip("\n")
    assert "first token after" in streamed.stderr
    without = json.loads(cli(*arguments, "--json", "--no-cache").stdout)
    assert without["answer"] == answer["answer"]
    assert without["variants"] is None
    assert without["cached_tokens"] == 0
    compared = json.loads(cli(*arguments, "--json", "--compare").stdout)
    assert compared["first_token_seconds_without_cache"] > 0


def test_a_question_longer_than_the_context_fails_before_the_model_runs(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(kvtool.Model, "model", property(never))
    result = cli("ask", "Why? " * 100, "--doc", "c.txt", code=USAGE)
    assert "has a context of 512; ask a shorter question" in error_of(result)


def test_segments_of_a_long_document_are_blended(cli: Cli) -> None:
    Path("long.md").write_text("\n\n".join(f"Paragraph {n} is about the number {n}." for n in range(4)))
    cli("prefill", "long.md", "--segment-tokens", "40")
    one, whole = (
        json.loads(cli("ask", "What?", "--doc", "long.md", *which, "--max-tokens", "1", "--json").stdout)
        for which in (("--segment", "3"), ())
    )
    assert one["recomputed_tokens"] == 0
    assert whole["recomputed_tokens"] > 0
    assert whole["cached_tokens"] > 3 * one["cached_tokens"]


def test_several_documents_are_blended(cli: Cli, store: Store) -> None:
    cli("compress", "--recipe", "kivi", "--bits", "4")
    arguments = ("ask", "What?", "--doc", "c.txt", "--doc", "docs/a.md@kivi", "--max-tokens", "4", "--json")
    answer = json.loads(cli(*arguments, "--trace", "trace.json").stdout)
    assert (answer["documents"], answer["variants"]) == (["c.txt", "docs/a.md"], ["raw", "kivi"])
    spans = json.loads(Path("trace.json").read_text())["traceEvents"]
    assert {"read", "decode", "move", "recompute"} <= {span.get("cat") for span in spans}
    exact = json.loads(cli(*arguments, "--recompute", "1").stdout)
    assert exact["recomputed_tokens"] == exact["cached_tokens"] == answer["cached_tokens"]
    assert exact["answer"] == json.loads(cli(*arguments, "--no-cache").stdout)["answer"]
    assert "evenly" in cli("ask", "--policies", "-").stdout


def timed(*, first: float, load: float, tokens: int) -> Answer:
    """An answer over a raw cache of ``tokens``, with its seconds to the first token and, of these, for loading."""
    return Answer("", (), ("a.md",), ("raw",), "", True, tokens, tokens, 0, load, first, first)


@pytest.mark.parametrize(
    ("first", "uncached", "says"),
    [
        (0.2, 5.0, "25× faster"),
        (0.2, 0.5, "2× faster"),
        (0.2, 0.25, "1.2× faster"),
        (0.2, 0.2, "1.0× faster"),
    ],
)
def test_how_much_faster_a_cache_was(first: float, uncached: float, says: str) -> None:
    assert faster(timed(first=first, load=0.1, tokens=1000), uncached) == says


def test_a_cache_that_was_slower_comes_with_the_reason(tiny: kvtool.Model) -> None:
    """One second for the question, 1 ms a token to load, 5 ms a token to prefill: equal at 250 tokens."""
    short = timed(first=1.1, load=0.1, tokens=100)
    assert faster(short, 0.5).endswith(
        "so few tokens save less than a cache costs; it pays from about 250 tokens on"
    )
    assert "longer than prefilling them on this machine" in faster(
        timed(first=1.1, load=0.6, tokens=100), 0.5
    )
    (line,) = render(short, timed(first=0.5, load=0, tokens=100), tiny).notes
    assert "0.50 s without it: slower, since" in line


def test_an_estimate_that_a_cache_was_slower_comes_with_the_reason_too(tiny: kvtool.Model) -> None:
    remember(tiny.fingerprint, 10_000, 50.0)
    (line,) = render(timed(first=1.1, load=0.1, tokens=100), None, tiny).notes
    assert "without it about 0.5 s" in line
    assert line.endswith("it pays from about 250 tokens on")


def test_both_times_are_taken_warm_and_count_the_same(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer runs first, and what only a first run has to do is in neither time."""
    asked: list[tuple[bool, int]] = []
    ask = module.ask

    def slow_at_first(*args: Any, cached: bool, max_tokens: int, **options: Any) -> Answer:
        answer = ask(*args, cached=cached, max_tokens=max_tokens, **options)
        asked.append((cached, max_tokens))
        return replace(answer, first_token_seconds=100.0) if len(asked) == 1 else answer

    monkeypatch.setattr(module, "ask", slow_at_first)
    compared = json.loads(
        cli("ask", "What?", "--doc", "c.txt", "--max-tokens", "3", "--compare", "--json").stdout
    )
    assert asked == [(True, 3), (True, 1), (False, 1)]
    assert compared["first_token_seconds"] < 100
    assert compared["answer_tokens"] == 3
