"""Curves of ratio against KL: what lies between measured settings, and nothing beyond them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One setting of a recipe: ``ratio`` counts all bytes, ``kl`` is in nats per token."""

    name: str
    ratio: float
    kl: float


@dataclass(frozen=True)
class Reached:
    """``least``: the curve ends here, within the KL that was asked for; more may be possible and was not measured."""

    ratio: float
    least: bool = False

    def __str__(self) -> str:
        return f"{'≥ ' if self.least else ''}{self.ratio:.1f}×"


NOT_REACHED = "not reached"


def ratio_at(curve: Sequence[Point], kl: float) -> Reached | None:
    """The largest ratio at which ``curve`` has a KL of at most ``kl``; None if none of its points has.

    Between the last point that has and the next, which has not, both axes are interpolated logarithmically. Where KL
    does not rise with the ratio throughout, this is the last crossing.
    """
    within = [point for point in curve if point.kl <= kl]
    if not within:
        return None
    last = max(within, key=lambda point: point.ratio)
    beyond = [point for point in curve if point.ratio > last.ratio]
    # Zero has no logarithm: of what loses nothing only itself is known.
    if not beyond or last.kl <= 0:
        return Reached(last.ratio, least=True)
    after = min(beyond, key=lambda point: point.ratio)
    share = math.log(kl / last.kl) / math.log(after.kl / last.kl)
    return Reached(last.ratio * (after.ratio / last.ratio) ** share)


def ratio_keeping(points: Sequence[tuple[float, float]], most: float) -> float | None:
    """Of (ratio, what is lost) the largest ratio up to which no point has lost more than ``most``.

    Measured points only: what is found does not fall evenly between them.
    """
    kept = None
    for ratio, lost in sorted(points):
        if lost > most:
            break
        kept = ratio
    return kept


@dataclass(frozen=True)
class Share:
    """``other``'s KL, at which ``own`` is the ratio of the curve that it is compared with."""

    other: Point
    own: Reached | None

    @property
    def bytes(self) -> float | None:
        """The curve's bytes ÷ those of ``other``; an upper bound if ``own`` is a least."""
        return self.other.ratio / self.own.ratio if self.own else None

    def __str__(self) -> str:
        if self.own is None or self.bytes is None:
            return NOT_REACHED
        return f"{'≤ ' if self.own.least else ''}{self.bytes:.3f}"


def shares(curve: Sequence[Point], others: Sequence[Point]) -> list[Share]:
    """What ``curve`` takes at the KL of each of ``others``."""
    return [Share(other, ratio_at(curve, other.kl)) for other in others]


@dataclass(frozen=True)
class Total:
    """A store of ``tokens``: all bytes with the shared calibration, and the ratio that this leaves."""

    tokens: int
    nbytes: float
    ratio: float


def total(tokens: int, bytes_per_token: float, calibration: int, values_per_token: int) -> Total:
    """``values_per_token`` are keys and values, which have 16 bits at a ratio of 1."""
    nbytes = bytes_per_token * tokens + calibration
    return Total(tokens, nbytes, 2 * values_per_token * tokens / nbytes)
