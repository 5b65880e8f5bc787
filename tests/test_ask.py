"""Answers as JSON: what ``kvtool ask --json`` prints."""

from __future__ import annotations

import kvtool
from kvtool.ask import ask, ask_each
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached, Text
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
