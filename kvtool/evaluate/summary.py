"""Records → what is said of each candidate, as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .agreement import exact, f1
from .candidates import Candidate
from .contexts import Context
from .needles import found
from .statistics import BLOCK, Estimate, mean, ratio

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
        "kl": _over_tokens("kl", index, texts),
        "dnll": _over_tokens("dnll", index, texts),
        "top1": _over_tokens("top1", index, texts),
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
    return _json(mean([one.records[index].get(metric, []) for one in texts], block=BLOCK))


def _document(name: str, record: Record) -> dict[str, Any]:
    means = {metric: math.fsum(record[metric]) / len(record[metric]) for metric in ("kl", "dnll", "top1")}
    return {"name": name, "bits_per_value": _size([record])["bits_per_value"], **means}


@dataclass(frozen=True)
class _Asked:
    """One needle question: its score over the candidate's cache and over the raw one."""

    about: Mapping[str, Any]
    length: int
    score: float
    raw: float


def _retrieval(index: int, needles: Sequence[Measured]) -> Any:
    contexts = [
        [
            _Asked(
                p.about, one.context.length, found(p.about["answers"], said), found(p.about["answers"], raw)
            )
            for p, said, raw in zip(
                one.context.prompts, one.records[index]["said"], one.records[0]["said"], strict=True
            )
        ]
        for one in needles
    ]
    everything = [asked for context in contexts for asked in context]
    if not everything:
        return None
    difference = mean([[a.score - a.raw for a in context] for context in contexts])
    return {
        "score": _json(_score(contexts)),
        "retention": _json(ratio([[(min(a.score, a.raw), a.raw) for a in c] for c in contexts]))
        if index
        else None,
        "told_from_raw": difference is not None and not difference.holds(0.0),
        "asked": len(everything),
        "tasks": {
            task: {"score": _json(_score(some)), "asked": sum(map(len, some))}
            for task, some in _split(contexts, lambda a: a.about["task"]).items()
        },
        "turns": [
            {"turn": turn, **_mean(some)}
            for turn, some in sorted(_split(contexts, lambda a: a.about["turn"]).items())
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
        "exact": _json(mean([[row["exact"] for row in context] for context in rows])),
        "f1": _json(mean([[row["f1"] for row in context] for context in rows])),
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
    if not all(errors):
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


def _json(estimate: Estimate | None) -> Any:
    return estimate and estimate.to_json()
