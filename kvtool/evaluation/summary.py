"""Records → a summary of each candidate, as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtool.evaluation.candidates import Candidate
from kvtool.measurement.answer_match import exact, f1
from kvtool.measurement.contexts import Context, Prompt
from kvtool.measurement.distortion import TOKEN_METRICS
from kvtool.measurement.needles import contained
from kvtool.measurement.statistics import BLOCK, Estimate, mean, ratio

Record = Mapping[str, Any]

DEPTHS = 5
"""Bands of depth in retrieval by length and depth."""

EXAMPLES = 5
"""Answers in the summary: those that differ most."""


@dataclass(frozen=True)
class Measured:
    """A context, and a record for each candidate, the raw cache's first."""

    context: Context
    records: tuple[Record, ...]


def candidate_summary(index: int, candidate: Candidate, measured: Sequence[Measured]) -> dict[str, Any]:
    """The summary of the candidate at ``index``, without its times, which are not made of records."""
    texts, needles, questions = (
        [one for one in measured if one.context.kind == kind] for kind in ("text", "needles", "questions")
    )
    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "family": candidate.family,
        "summary": candidate.summary,
        "paper": candidate.paper,
        **_size([one.records[index] for one in texts or measured]),
        "memory": _memory([one.records[index] for one in texts or measured]),
        **{metric: _over_tokens(metric, index, texts) for metric in TOKEN_METRICS},
        "retrieval": _retrieval(index, needles),
        "answers": _answers(index, questions),
        "relative_error": _relative_error([one.records[index] for one in measured]),
        "times": None,
        "by_document": [
            _document(one.context.name, one.records[index]) for one in texts if "kl" in one.records[index]
        ],
    }


def blend_summary(name: str, about: Record, records: Sequence[Record], *, asks: bool) -> dict[str, Any]:
    """The summary of a blend, whose ``records`` are of one question each; estimates are like a candidate's.

    Answers are compared where the user ``asks``: those to a question of kvtool's own say little.
    """
    by_document: dict[str, list[Record]] = {}
    for record in records:
        by_document.setdefault(record["document"], []).append(record)
    groups = list(by_document.values())

    def over_tokens(metric: str) -> Any:
        return _json(mean([[v for record in group for v in record[metric]] for group in groups], block=BLOCK))

    def agreement(compare: Callable[[str, str], float]) -> Any:
        compared = [[float(compare(one["answer"], one["raw"])) for one in group] for group in groups]
        return _json(mean(compared, share=True))

    answers = {"exact_match": agreement(exact), "f1": agreement(f1), "questions": len(records)}
    return {
        "name": name,
        "kind": "blend",
        **about,
        **{metric: over_tokens(metric) for metric in TOKEN_METRICS},
        "answers": answers if asks else None,
    }


def _size(records: Sequence[Record]) -> dict[str, float]:
    bits = 8 * sum(r["nbytes"] for r in records) / sum(r["n_elements"] for r in records)
    return {"bits_per_value": bits, "ratio": 16 / bits}


def _memory(records: Sequence[Record]) -> dict[str, float] | None:
    """What caches take once they are loaded, and in their files; None where earlier records do not say it."""
    if not all("resident_nbytes" in record for record in records):
        return None
    resident = sum(record["resident_nbytes"] for record in records)
    return {
        "stored_bytes": sum(record["nbytes"] for record in records),
        "resident_bytes": resident,
        "bits_per_value": 8 * resident / sum(record["resident_elements"] for record in records),
    }


def _over_tokens(metric: str, index: int, texts: Sequence[Measured]) -> Any:
    """The mean over tokens. Segments of one document are not independent: the bootstrap draws them as one."""
    by_document: dict[str, list[float]] = {}
    for one in texts:
        name = one.context.segment.document if one.context.segment else one.context.name
        by_document.setdefault(name, []).extend(one.records[index].get(metric, []))
    return _json(mean(list(by_document.values()), block=BLOCK))


def _document(name: str, record: Record) -> dict[str, Any]:
    means = {metric: _finite(sum(record[metric]) / len(record[metric])) for metric in TOKEN_METRICS}
    return {"name": name, "bits_per_value": _size([record])["bits_per_value"], **means}


@dataclass(frozen=True)
class _NeedleQuestion:
    """A question about needles: which of its answers the model gives over the candidate's cache, and over the raw one."""

    about: Mapping[str, Any]
    length: int
    answered: tuple[bool, ...]
    answered_raw: tuple[bool, ...]

    @property
    def score(self) -> float:
        return sum(self.answered) / len(self.answered)

    @property
    def kept(self) -> tuple[float, float]:
        """The raw cache's right answers that are still given, and all of them, as shares of the question."""
        both = sum(a and b for a, b in zip(self.answered, self.answered_raw, strict=True))
        return both / len(self.answered_raw), sum(self.answered_raw) / len(self.answered_raw)


def _retrieval(index: int, needles: Sequence[Measured]) -> Any:
    contexts = [_needle_questions(index, one) for one in needles]
    if not any(contexts):
        return None
    kept = ratio([[q.kept for q in context] for context in contexts], share=True) if index else None
    later = {q.about["task"] for context in contexts for q in context if q.about["turn"] > 1}
    # Turns are compared on the tasks that have later ones: others may be harder.
    comparable = [[q for q in context if q.about["task"] in later] for context in contexts]
    return {
        "bits_per_value": _size([one.records[index] for one in needles])["bits_per_value"],
        "score": _json(_score(contexts)),
        "retention": _json(kept),
        "differs_from_raw": kept is not None and kept.high < 1,
        "questions": sum(map(len, contexts)),
        "tasks": {
            task: {"score": _json(_score(some)), "questions": sum(map(len, some))}
            for task, some in _split(contexts, lambda q: q.about["task"]).items()
        },
        "turns": [
            {"turn": turn, **_mean(some)}
            for turn, some in sorted(_split(comparable, lambda q: q.about["turn"]).items())
        ],
        "by_length_and_depth": [
            {"length": length, "depth": depth, **_mean(some)}
            for (length, depth), some in sorted(_split(contexts, _length_and_depth).items())
        ],
    }


def _needle_questions(index: int, one: Measured) -> list[_NeedleQuestion]:
    return [
        _NeedleQuestion(
            prompt.about,
            one.context.length,
            tuple(contained(prompt.about["answers"], answer)),
            tuple(contained(prompt.about["answers"], raw)),
        )
        for prompt, answer, raw in _answered(index, one)
    ]


def _answered(index: int, one: Measured) -> Iterator[tuple[Prompt, str, str]]:
    """Each prompt with the answer over the candidate's cache and over the raw one."""
    return zip(one.context.prompts, one.records[index]["answers"], one.records[0]["answers"], strict=True)


def _score(contexts: Iterable[Sequence[_NeedleQuestion]]) -> Estimate | None:
    return mean([[q.score for q in context] for context in contexts])


def _mean(contexts: Sequence[Sequence[_NeedleQuestion]]) -> dict[str, Any]:
    scores = [q.score for context in contexts for q in context]
    return {"score": sum(scores) / len(scores), "questions": len(scores)}


def _length_and_depth(question: _NeedleQuestion) -> tuple[int, float] | None:
    """The length, and the middle of the band of depth; None for needles in several places."""
    depth = question.about["depth"]
    if depth is None:
        return None
    return question.length, (min(int(depth * DEPTHS), DEPTHS - 1) + 0.5) / DEPTHS


def _split(
    contexts: Sequence[Sequence[_NeedleQuestion]], by: Callable[[_NeedleQuestion], Any]
) -> dict[Any, list[list[_NeedleQuestion]]]:
    """The same contexts for each value of ``by``, with the questions that have it."""
    values = dict.fromkeys(by(question) for context in contexts for question in context)
    return {
        value: [[question for question in context if by(question) == value] for context in contexts]
        for value in values
        if value is not None
    }


def _answers(index: int, questions: Sequence[Measured]) -> Any:
    rows = [
        [
            {**prompt.about, "raw": raw, "answer": answer, "f1": f1(answer, raw)}
            | {"exact_match": float(exact(answer, raw))}
            for prompt, answer, raw in _answered(index, one)
        ]
        for one in questions
    ]
    everything = [row for context in rows for row in context]
    if not everything:
        return None
    turns = sorted({row["turn"] for row in everything})
    worst = sorted((row for row in everything if row["f1"] < 1), key=lambda row: row["f1"])

    def agreement(metric: str) -> Any:
        # The raw cache's answers agree with themselves, however few they are.
        return _json(mean([[row[metric] for row in context] for context in rows], share=index > 0))

    return {
        "exact_match": agreement("exact_match"),
        "f1": agreement("f1"),
        "questions": len(everything),
        "turns": [
            {"turn": turn, **_agreement([row for row in everything if row["turn"] == turn])} for turn in turns
        ],
        "examples": [{k: v for k, v in row.items() if k != "exact_match"} for row in worst[:EXAMPLES]],
    }


def _agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {metric: sum(row[metric] for row in rows) / len(rows) for metric in ("f1", "exact_match")}
    return means | {"questions": len(rows)}


def _relative_error(records: Sequence[Record]) -> Any:
    """The norm of the error divided by the norm of the cache, by layer and head; None where tokens are missing."""
    errors = [record["error"] for record in records]
    if not all(errors) or not all(map(is_finite, records)):
        return None
    return {
        side: [
            [_root(sum(p[0] for p in heads), sum(p[1] for p in heads)) for heads in zip(*layers, strict=True)]
            for layers in zip(*(error[side] for error in errors), strict=True)
        ]
        for side in ("keys", "values")
    }


def _root(error: float, square: float) -> float:
    return math.sqrt(error / square) if square else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json(estimate: Estimate | None) -> Any:
    """The estimate as JSON; None for what is no number, since JSON has no NaN."""
    return estimate.to_json() if estimate and math.isfinite(estimate.value) else None


def is_finite(record: Record) -> bool:
    """Whether a cache, and what is predicted over it, are all numbers."""
    predicted = [value for metric in ("kl", "dnll") for value in record.get(metric, [])]
    errors = [pair[0] for layers in record["error"].values() for heads in layers for pair in heads]
    return all(map(math.isfinite, predicted + errors))
