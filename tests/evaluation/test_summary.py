"""Figures from records made by hand, whose answers can be counted."""

from __future__ import annotations

from typing import Any

import pytest

from kvtool.evaluation.candidates import Raw
from kvtool.evaluation.summary import Measured, candidate_summary
from kvtool.evaluation.timing import Rounds
from kvtool.measurement.contexts import Context, Prompt
from kvtool.store.segments import SegmentRef


def record(**more: Any) -> dict[str, Any]:
    return {
        "nbytes": 100,
        "n_elements": 400,
        "error": {"keys": [[[1.0, 4.0]]], "values": [[[0.0, 9.0]]]},
        **more,
    }


def haystack(length: int, prompts: list[tuple[str, float | None, int, str]]) -> Context:
    asked = [
        Prompt((1,), 4, {"task": task, "answers": answers.split(), "depth": depth, "turn": turn})
        for task, depth, turn, answers in prompts
    ]
    return Context("needles", f"needles/{length}", (1, 2), prompts=tuple(asked), length=length)


ASKED = [
    ("multi-key", 0.05, 1, "11"),
    ("multi-key", 0.95, 1, "22"),
    ("multi-query", None, 1, "11 22"),
    ("multi-key", 0.05, 2, "11"),
]
RAW_SAID = ["It is 11.", "It is 22.", "11 and 99", "no"]
SAID = ["It is 11.", "It is 33.", "22 and 99", "11"]


def retrieval(said: list[str], raw: list[str] = RAW_SAID, contexts: int = 8) -> Any:
    one = Measured(haystack(512, ASKED), (record(answers=raw), record(answers=said)))
    return candidate_summary(1, Raw(), [one] * contexts)["retrieval"]


def test_what_is_found_and_what_is_kept() -> None:
    found = retrieval(SAID)
    assert found["questions"] == 32
    assert found["score"]["value"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    # Raw has 11, 22, and 11 of the pair: 2.5 questions' worth, of which the first alone is still said.
    assert found["retention"]["value"] == pytest.approx(1 / 2.5)
    assert found["differs_from_raw"]
    assert found["tasks"]["multi-query"] == {
        "score": pytest.approx(found["tasks"]["multi-query"]["score"]),
        "questions": 8,
    }
    assert found["tasks"]["multi-query"]["score"]["value"] == 0.5


def test_turns_are_compared_on_the_same_tasks() -> None:
    assert retrieval(SAID)["turns"] == [
        {"turn": 1, "score": 0.5, "questions": 16},
        {"turn": 2, "score": 1.0, "questions": 8},
    ]


def test_the_map_has_what_stands_in_one_place() -> None:
    assert retrieval(SAID)["by_length_and_depth"] == [
        {"length": 512, "depth": 0.1, "score": 1.0, "questions": 16},
        {"length": 512, "depth": 0.9, "score": 0.0, "questions": 8},
    ]


def test_the_same_answers_do_not_differ_from_raw() -> None:
    found = retrieval(RAW_SAID)
    assert found["retention"]["value"] == 1
    assert not found["differs_from_raw"]


def test_answering_other_questions_keeps_nothing() -> None:
    found = retrieval(["no", "no", "22", "11"], raw=["11", "22", "11", "no"])
    assert found["retention"]["value"] == 0
    assert found["differs_from_raw"]


def test_raw_that_answers_nothing_leaves_nothing_to_keep() -> None:
    assert retrieval(SAID, raw=["no"] * 4)["retention"] is None


def test_memory_is_that_of_all_contexts_where_it_was_measured() -> None:
    def memory(*records: dict[str, Any]) -> Any:
        measured = [Measured(Context("text", "a", (1, 2)), (each, each)) for each in records]
        return candidate_summary(1, Raw(), measured)["memory"]

    new = record(resident_nbytes=300, resident_elements=200)
    assert memory(new, new) == {"stored_bytes": 200, "resident_bytes": 600, "bits_per_value": 12.0}
    assert memory(new, record()) is None


def test_segments_of_one_document_are_one() -> None:
    def text(document: str, segment: int) -> Measured:
        context = Context("text", document, (1, 2), (1,), (2,), segment=SegmentRef(document, segment))
        predicted = {"kl": [0.1 * (segment + 1)], "dnll": [0.0], "top1": [1.0]}
        return Measured(context, (record(**predicted), record(**predicted)))

    found = candidate_summary(1, Raw(), [text("a", 0), text("a", 1), text("b", 0)])
    assert found["kl"]["n"] == 2
    assert found["kl"]["value"] == pytest.approx(0.4 / 3)
    assert found["bits_per_value"] == 2.0
    assert found["relative_error"] == {"keys": [[0.5]], "values": [[0.0]]}


def test_a_time_is_how_often_it_goes_into_the_full_one() -> None:
    found = Rounds([3.0, 1.0, 2.0], [0.1] * 3, [0.5, 1.0, 2.0], 7).to_json([10.0, 10.0, 10.0])
    assert found["ttft_speedup"] == {"value": 10.0, "low": 5.0, "high": 20.0, "n": 3}
    assert (found["encode_seconds"], found["ttft_seconds"], found["peak_bytes"]) == (2.0, 1.0, 7)
    assert Rounds([1.0], [1.0], [], None).to_json([10.0])["ttft_speedup"] is None
