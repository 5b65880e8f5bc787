"""Answers as JSON: what ``kvtool ask --json`` prints."""

from __future__ import annotations

import pytest

import kvtool
from kvtool.ask import ask, ask_each
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached, Text
from kvtool.errors import UsageError
from kvtool.store.local import LocalStore


def test_an_answer_as_json(store: LocalStore, tiny: kvtool.Model) -> None:
    # Each document is named as often as it was asked for; text between documents has no name.
    parts = iter(["c.txt", Text(" and "), Cached("docs/a.md"), "c.txt"])
    answer = ask("What?", parts, tiny, store, options=BlendOptions(0.5, "even"), max_tokens=3)
    uncached = ask("What?", "c.txt", tiny, store, max_tokens=1, cached=False)
    assert answer.to_json() == {
        "documents": ["c.txt", "docs/a.md", "c.txt"],
        "variants": ["raw"] * 3,
        "policy": "even",
        "recomputed_tokens": answer.recomputed_tokens,
        "answer": answer.text,
        "answer_tokens": len(answer.token_ids),
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "read_bytes": None,
        "stored_bytes": None,
        "load_seconds": round(answer.load_seconds, 4),
        "first_token_seconds": round(answer.first_token_seconds, 4),
        "first_token_seconds_without_cache": None,
    }
    assert answer.recomputed_tokens > 0
    seconds = round(uncached.first_token_seconds, 4)
    assert answer.to_json(uncached) == {**answer.to_json(), "first_token_seconds_without_cache": seconds}
    found = uncached.to_json(answer)
    assert (found["variants"], found["first_token_seconds_without_cache"]) == (None, seconds)


def test_answers_as_json(store: LocalStore, tiny: kvtool.Model) -> None:
    questions = ["What?", "How much?"]
    answers = ask_each(questions, ["c.txt", "docs/a.md"], tiny, store, separator="", max_tokens=3)
    found = answers.to_json()
    assert found["answers"] == [
        {"question": q, "answer": text} for q, text in zip(questions, answers.texts, strict=True)
    ]
    assert list(found) == [
        "documents",
        "variants",
        "policy",
        "answers",
        "cached_tokens",
        "recomputed_tokens",
        "load_seconds",
        "seconds",
    ]
    assert (found["documents"], found["variants"]) == (["c.txt", "docs/a.md"], ["raw", "raw"])


def test_part_of_a_document(store: LocalStore, tiny: kvtool.Model) -> None:
    kvtool.compress(store, recipe="quest")
    whole = ask("What?", "c.txt", tiny, store, max_tokens=3)
    part = ask("What?", "c.txt", tiny, store, variant="quest", read=1.0, max_tokens=3)
    assert part.token_ids == whole.token_ids
    assert part.read is not None
    assert part.to_json()["read_bytes"] == part.read.nbytes <= part.read.stored_nbytes
    for share in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(UsageError, match=r"is no share of a document; expected a number above 0"):
            ask("What?", "c.txt", tiny, store, variant="quest", read=share)
    with pytest.raises(UsageError, match=r"c.txt, docs/a.md: are several documents"):
        ask("What?", ["c.txt", "docs/a.md"], tiny, store, variant="quest", read=0.5)
