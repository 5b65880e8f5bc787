"""How long storing and loading take, and how soon the first token comes, beside a full prefill of the same tokens.

Everything is timed in one run, in rounds in which each candidate has one turn, so that what slows the machine down
slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from kvtool.ask import ask
from kvtool.evaluation.candidates import Candidate
from kvtool.measurement.bench import NAME, Bench
from kvtool.measurement.contexts import Context
from kvtool.measurement.peak_memory import peak
from kvtool.measurement.statistics import Estimate

QUESTION = "What is this text about?"


@dataclass
class Rounds:
    """One candidate's seconds, round by round."""

    encode: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    peak_nbytes: int | None = None


def times(
    bench: Bench,
    context: Context,
    candidates: Sequence[Candidate],
    repeats: int,
    on_turn: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was timed, and each candidate's times, as JSON. The bench holds the context."""
    full: list[float] = []
    rounds = [Rounds() for _ in candidates]
    for _ in range(repeats):
        full.append(_first_token(bench, None))
        on_turn("full prefill")
        for candidate, own in zip(candidates, rounds, strict=True):
            restored = candidate.restore(bench)
            own.encode.append(restored.encode_seconds)
            own.load.append(restored.load_seconds)
            # A candidate that leaves no artifact cannot be loaded the way a question would load it.
            if candidate.variant is not None:
                del restored
                own.first_token.append(_first_token(bench, candidate.variant))
            on_turn(candidate.name)
    for candidate, own in zip(candidates, rounds, strict=True):
        if candidate.variant is not None:
            with peak() as measured:
                bench.load(candidate.variant)
            own.peak_nbytes = measured.nbytes
    about = {
        "document": context.name,
        "tokens": len(context.token_ids),
        "repeats": repeats,
        "prefill_seconds": median(full),
    }
    return about, [told(own, full) for own in rounds]


def _first_token(bench: Bench, variant: str | None) -> float:
    answer = ask(
        QUESTION,
        documents=NAME,
        model=bench.model,
        store=bench.store,
        variant=variant or "raw",
        cached=variant is not None,
        max_tokens=1,
    )
    return answer.first_token_seconds


def told(own: Rounds, full: Sequence[float]) -> dict[str, Any]:
    ratio = None
    if own.first_token:
        each = [a / b for a, b in zip(full, own.first_token, strict=True)]
        ratio = Estimate(median(full) / median(own.first_token), min(each), max(each), len(each)).to_json()
    return {
        "encode_seconds": median(own.encode),
        "load_seconds": median(own.load),
        "first_token_seconds": median(own.first_token) if own.first_token else None,
        "ttft_ratio": ratio,
        "peak_bytes": own.peak_nbytes,
    }
