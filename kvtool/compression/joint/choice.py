"""The best of several settings of one size, by KL and by facts that are still found on text that was held back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvtool.calibration.held_back import Quality
from kvtool.compression.joint.space import percent, shown

KL, LOST = 0.03, 0.15
"""How much KL is worth as much as which share of lost facts: what the preset balanced of klt allows of each."""

CLOSE = 0.1
"""The share of its loss by which a setting may lose more than the best and count as no worse."""


@dataclass(frozen=True)
class Candidate:
    """A setting that meets what is asked. ``bits`` per value are stored where that was measured, ``resident`` is a share."""

    parameters: Mapping[str, float]
    bits: float
    resident: float


@dataclass(frozen=True)
class Choice:
    """The setting that was chosen of ``candidates``, and what it costs, None where there was nothing to choose.

    It meets what was asked for; nothing else is chosen.
    """

    candidate: Candidate
    quality: Quality | None = None
    candidates: int = 1
    met: ClassVar[bool] = True

    @property
    def parameters(self) -> Mapping[str, float]:
        return self.candidate.parameters

    def describe(self) -> str:
        """The setting and what was measured with it, for people."""
        size = f"{self.candidate.bits:.3g} bits per value, {percent(self.candidate.resident)} of the raw cache's memory"
        line = f"{shown(self.parameters)}: {size}"
        if self.quality is None:
            return line
        facts = f", {self.quality.kept} of {self.quality.facts} facts found" if self.quality.facts else ""
        return f"{line}, KL about {self.quality.kl:.2g}{facts}; the best of {self.candidates} settings of that size"

    def to_json(self) -> dict[str, Any]:
        quality = self.quality
        return {
            "parameters": dict(self.parameters),
            "bits_per_value": self.candidate.bits,
            "resident": self.candidate.resident,
            "kl": quality and quality.kl,
            "retrieval": quality and quality.retrieval,
            "candidates": self.candidates,
        }


def choose(candidates: Sequence[Candidate], qualities: Sequence[Quality]) -> Choice:
    """The candidate that loses least; of those that hardly lose more, the one that takes the least memory, then bytes.

    So what is not asked for is as small as it can be for nothing.
    """
    losses = [loss(quality) for quality in qualities]
    close = [n for n, lost in enumerate(losses) if lost <= (1 + CLOSE) * min(losses)]
    best = min(close, key=lambda n: (round(candidates[n].resident, 3), candidates[n].bits))
    return Choice(candidates[best], qualities[best], len(candidates))


def loss(quality: Quality) -> float:
    """KL and the share of lost facts, weighed and summed; infinite for a cache that is not made of numbers."""
    if not math.isfinite(quality.kl):
        return math.inf
    lost = 0.0 if quality.retrieval is None else 1 - quality.retrieval
    return quality.kl / KL + lost / LOST
