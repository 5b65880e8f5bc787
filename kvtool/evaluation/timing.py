"""Times to encode, to load and to the first token, beside a full prefill of the same tokens.

Everything is timed in one run, in rounds in which each candidate has one turn, so that what slows the machine slows all of
them.
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


@dataclass(frozen=True)
class Times:
    """``conditions`` say what was timed, ``candidates`` have each candidate's times, both as JSON."""

    conditions: dict[str, Any]
    candidates: list[dict[str, Any]]


@dataclass
class Rounds:
    """One candidate's seconds, round by round, and the bytes that loading takes at most."""

    encode: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    peak_nbytes: int | None = None

    def to_json(self, prefill: Sequence[float]) -> dict[str, Any]:
        """Medians in seconds, and how many times sooner the first token comes than in the rounds of a full ``prefill``."""
        return {
            "encode_seconds": median(self.encode),
            "load_seconds": median(self.load),
            "ttft_seconds": median(self.first_token) if self.first_token else None,
            "ttft_speedup": self._speedup(prefill),
            "peak_bytes": self.peak_nbytes,
        }

    def _speedup(self, prefill: Sequence[float]) -> dict[str, Any] | None:
        if not self.first_token:
            return None
        ratios = [full / cached for full, cached in zip(prefill, self.first_token, strict=True)]
        value = median(prefill) / median(self.first_token)
        return Estimate(value, min(ratios), max(ratios), len(ratios)).to_json()


def measure_times(
    bench: Bench,
    context: Context,
    candidates: Sequence[Candidate],
    repeats: int,
    on_timed: Callable[[str], None] = lambda _: None,
) -> Times:
    """Times every candidate on the context, which the bench holds. ``on_timed`` is called after each turn."""
    prefill: list[float] = []
    rounds = [Rounds() for _ in candidates]
    for _ in range(repeats):
        prefill.append(_first_token_seconds(bench, None))
        on_timed("full prefill")
        for candidate, seconds in zip(candidates, rounds, strict=True):
            restored = candidate.restore(bench)
            seconds.encode.append(restored.encode_seconds)
            seconds.load.append(restored.load_seconds)
            # A candidate that leaves no artifact cannot be loaded the way a question would load it.
            if candidate.variant is not None:
                del restored
                seconds.first_token.append(_first_token_seconds(bench, candidate.variant))
            on_timed(candidate.name)
    for candidate, seconds in zip(candidates, rounds, strict=True):
        if candidate.variant is not None:
            with peak() as memory:
                bench.load(candidate.variant)
            seconds.peak_nbytes = memory.nbytes
    conditions = {"document": context.name, "tokens": len(context.token_ids), "repeats": repeats}
    conditions["prefill_seconds"] = median(prefill)
    return Times(conditions, [seconds.to_json(prefill) for seconds in rounds])


def _first_token_seconds(bench: Bench, variant: str | None) -> float:
    """Seconds to the first token over ``variant``, or with a full prefill where it is None."""
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
