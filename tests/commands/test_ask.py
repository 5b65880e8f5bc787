"""kvtool ask: over one document, one of several segments, and several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool import Store
from kvtool.errors import USAGE
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
