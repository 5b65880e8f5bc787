"""Levels of quality: what each promises, which candidates keep it, and the smallest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.report.numbers import Json, estimated, hundredths, plain


@dataclass(frozen=True)
class Level:
    """``max_kl`` is in nats per token, on the upper end of the interval. ``min_kept`` is the share kept of the raw cache's
    right answers. With ``like_raw``, retrieval must not differ from the raw cache's either. ``exact``: bit by bit the same.
    """

    name: str
    exact: bool = False
    max_kl: float | None = None
    min_kept: float | None = None
    like_raw: bool = False

    @property
    def promise(self) -> str:
        if self.exact:
            return "every bit of the raw cache"
        assert self.max_kl is not None
        assert self.min_kept is not None
        alike = ", not to be told from raw" if self.like_raw else ""
        return f"KL at most {plain(self.max_kl)}, retrieval kept at least {100 * self.min_kept:.0f} %{alike}"

    def admits(self, candidate: Json) -> bool:
        """Whether the candidate keeps the promise, and in its best round brings the first token sooner than a full prefill.

        What was not measured is not held against it: where the model finds no needle over the raw cache, none can be lost.
        """
        speedup = candidate["times"] and candidate["times"]["ttft_speedup"]
        if speedup and speedup["high"] <= 1:
            return False
        return is_exact(candidate) if self.exact else self._keeps(candidate)

    def _keeps(self, candidate: Json) -> bool:
        retrieval = candidate["retrieval"] or {"retention": None, "differs_from_raw": False}
        kept = retrieval["retention"]
        return (
            candidate["kl"] is not None
            and candidate["kl"]["high"] <= self.max_kl
            and (kept is None or kept["value"] >= self.min_kept)
            and not (self.like_raw and retrieval["differs_from_raw"])
        )


LEVELS = (
    Level("exact", exact=True),
    Level("safe", max_kl=0.01, min_kept=0.95, like_raw=True),
    Level("small", max_kl=0.1, min_kept=0.8),
)


def is_exact(candidate: Json) -> bool:
    """Whether every key and value came back as it was."""
    error = candidate["relative_error"]
    return error is not None and not any(e for side in error.values() for layer in side for e in layer)


def choice(level: Level, members: Sequence[Json]) -> Json | None:
    """The smallest of the frontier's ``members`` that keeps the promise, None if none does."""
    admitted = [member for member in members if level.admits(member)]
    return min(admitted, key=lambda c: (c["bits_per_value"], c["kl"]["value"], c["name"]), default=None)


def reason(level: Level, chosen: Json | None, members: Sequence[Json], raw: Json) -> str:
    """One sentence that says why."""
    if chosen is None:
        late = " and brings the first token sooner than a full prefill"
        return f"none of the {len(members)} candidates on the frontier keeps {level.promise}{late}"
    number = sum(map(level.admits, members))
    rank = f"the smallest of {number} that keep" if number > 1 else "the only one that keeps"
    return f"{rank} {level.promise}: {figures(chosen, raw)}"


def figures(candidate: Json, raw: Json) -> str:
    parts = [f"{hundredths(candidate['bits_per_value']).text} bits per value"]
    if candidate["kind"] != "raw":
        parts.append(f"{raw['bits_per_value'] / candidate['bits_per_value']:.1f} times smaller than raw")
    if candidate["kl"] and candidate["kl"]["value"]:
        cell = estimated(candidate["kl"])
        parts.append(f"KL {cell.text}" + (f" ({cell.interval})" if cell.interval else ""))
    if kept := candidate["retrieval"] and candidate["retrieval"]["retention"]:
        parts.append(f"retrieval kept {100 * kept['value']:.0f} %")
    if speedup := candidate["times"] and candidate["times"]["ttft_speedup"]:
        parts.append(f"first token {speedup['value']:.1f} times sooner than with a full prefill")
    return ", ".join(parts)
