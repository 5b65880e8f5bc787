"""Records → what is said of each candidate, as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtool.evaluation.candidates import Candidate
from kvtool.measurement.answer_match import exact, f1
from kvtool.measurement.contexts import Context
from kvtool.measurement.distortion import TOKEN_METRICS
from kvtool.measurement.needles import found
from kvtool.measurement.statistics import BLOCK, Estimate, mean, ratio

Record = Mapping[str, Any]

DEPTHS = 5
"""Bands of depth in the map of retrieval."""

EXAMPLES = 5
"""Answers that are shown, those that differ most."""


@dataclass(frozen=True)
class Measured:
    """A context, and for each candidate its record; the first is the raw cache's."""

    context: Context
    records: tuple[Record, ...]


def candidate_summary(index: int, candidate: Candidate, measured: Sequence[Measured]) -> dict[str, Any]:
    """All but the times, which are not made of records."""
    by_kind = {
        kind: [one for one in measured if one.context.kind == kind]
        for kind in ("text", "needles", "questions")
    }
    texts = by_kind["text"]
    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "family": candidate.family,
        "summary": candidate.summary,
        "paper": candidate.paper,
        **_size([one.records[index] for one in texts or measured]),
        **{metric: _over_tokens(metric, index, texts) for metric in TOKEN_METRICS},
        "retrieval": _retrieval(index, by_kind["needles"]),
        "answers": _answers(index, by_kind["questions"]),
        "error": _error([one.records[index] for one in measured]),
        "times": None,
        "by_document": [
            _document(one.context.name, one.records[index]) for one in texts if "kl" in one.records[index]
        ],
    }


def _size(records: Sequence[Record]) -> dict[str, float]:
    bits = 8 * sum(r["nbytes"] for r in records) / sum(r["n_elements"] for r in records)
    return {"bits_per_value": bits, "ratio": 16 / bits}


def _over_tokens(metric: str, index: int, texts: Sequence[Measured]) -> Any:
    """Segments of one document are not independent of one another: they are drawn as one."""
    by_document: dict[str, list[float]] = {}
    for one in texts:
        name = one.context.place.document if one.context.place else one.context.name
        by_document.setdefault(name, []).extend(one.records[index].get(metric, []))
    return _json(mean(list(by_document.values()), block=BLOCK))


def _document(name: str, record: Record) -> dict[str, Any]:
    means = {metric: _finite(sum(record[metric]) / len(record[metric])) for metric in TOKEN_METRICS}
    return {"name": name, "bits_per_value": _size([record])["bits_per_value"], **means}


@dataclass(frozen=True)
class _Asked:
    """One needle question, and which of its answers the model gives over the candidate's cache and over the raw one."""

    about: Mapping[str, Any]
    length: int
    there: tuple[bool, ...]
    raw: tuple[bool, ...]

    @property
    def score(self) -> float:
        return sum(self.there) / len(self.there)

    @property
    def kept(self) -> tuple[float, float]:
        """Of the raw cache's right answers, as shares of the question: those still given, and all."""
        both = sum(a and b for a, b in zip(self.there, self.raw, strict=True))
        return both / len(self.raw), sum(self.raw) / len(self.raw)


def _retrieval(index: int, needles: Sequence[Measured]) -> Any:
    contexts = [
        [
            _Asked(
                p.about,
                one.context.length,
                tuple(found(p.about["answers"], said)),
                tuple(found(p.about["answers"], raw)),
            )
            for p, said, raw in zip(
                one.context.prompts, one.records[index]["said"], one.records[0]["said"], strict=True
            )
        ]
        for one in needles
    ]
    if not any(contexts):
        return None
    kept = ratio([[asked.kept for asked in context] for context in contexts], share=True) if index else None
    later = {a.about["task"] for context in contexts for a in context if a.about["turn"] > 1}
    # Turns are compared on the tasks that have later ones: others may be harder.
    alike = [[a for a in context if a.about["task"] in later] for context in contexts]
    return {
        "score": _json(_score(contexts)),
        "retention": _json(kept),
        "told_from_raw": kept is not None and kept.high < 1,
        "asked": sum(map(len, contexts)),
        "tasks": {
            task: {"score": _json(_score(some)), "asked": sum(map(len, some))}
            for task, some in _split(contexts, lambda a: a.about["task"]).items()
        },
        "turns": [
            {"turn": turn, **_mean(some)}
            for turn, some in sorted(_split(alike, lambda a: a.about["turn"]).items())
        ],
        "map": [
            {"length": length, "depth": depth, **_mean(some)}
            for (length, depth), some in sorted(_split(contexts, _cell).items())
        ],
    }


def _score(contexts: Iterable[Sequence[_Asked]]) -> Estimate | None:
    return mean([[a.score for a in context] for context in contexts])


def _mean(contexts: Sequence[Sequence[_Asked]]) -> dict[str, Any]:
    scores = [a.score for context in contexts for a in context]
    return {"score": sum(scores) / len(scores), "asked": len(scores)}


def _cell(asked: _Asked) -> tuple[int, float] | None:
    """Length and middle of the band of depth; what has no one place has no cell."""
    depth = asked.about["depth"]
    if depth is None:
        return None
    return asked.length, (min(int(depth * DEPTHS), DEPTHS - 1) + 0.5) / DEPTHS


def _split(
    contexts: Sequence[Sequence[_Asked]], by: Callable[[_Asked], Any]
) -> dict[Any, list[list[_Asked]]]:
    """The same contexts for each value of ``by``, with the questions that have it."""
    values = dict.fromkeys(by(asked) for context in contexts for asked in context)
    return {
        value: [[asked for asked in context if by(asked) == value] for context in contexts]
        for value in values
        if value is not None
    }


def _answers(index: int, questions: Sequence[Measured]) -> Any:
    rows = [
        [
            {**p.about, "raw": raw, "answer": said, "f1": f1(said, raw), "exact": float(exact(said, raw))}
            for p, said, raw in zip(
                one.context.prompts, one.records[index]["said"], one.records[0]["said"], strict=True
            )
        ]
        for one in questions
    ]
    everything = [row for context in rows for row in context]
    if not everything:
        return None
    turns = sorted({row["turn"] for row in everything})
    worst = sorted((row for row in everything if row["f1"] < 1), key=lambda row: row["f1"])
    return {
        # The raw cache's answers agree with themselves, however few they are.
        "exact": _json(mean([[row["exact"] for row in context] for context in rows], share=index > 0)),
        "f1": _json(mean([[row["f1"] for row in context] for context in rows], share=index > 0)),
        "asked": len(everything),
        "turns": [
            {"turn": turn, **_agreement([r for r in everything if r["turn"] == turn])} for turn in turns
        ],
        "examples": [{k: v for k, v in row.items() if k != "exact"} for row in worst[:EXAMPLES]],
    }


def _agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in ("f1", "exact")} | {"asked": len(rows)}


def _error(records: Sequence[Record]) -> Any:
    """Norm of the error over the norm of the cache, by layer and head; None where tokens are missing."""
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


def _root(wrong: float, whole: float) -> float:
    return math.sqrt(wrong / whole) if whole else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json(estimate: Estimate | None) -> Any:
    """None for what is no number, which JSON has no word for."""
    return estimate.to_json() if estimate and math.isfinite(estimate.value) else None


def is_finite(record: Record) -> bool:
    """Whether a cache, and what is predicted over it, are numbers throughout."""
    predicted = [value for metric in ("kl", "dnll") for value in record.get(metric, [])]
    errors = [pair[0] for layers in record["error"].values() for heads in layers for pair in heads]
    return all(map(math.isfinite, predicted + errors))
