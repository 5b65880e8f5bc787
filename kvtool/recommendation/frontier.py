"""The frontier: the candidates that no other dominates.

One dominates another if it is at least as good in every measure, and in one of them better than the other's 95 % interval
allows. So a difference that may be chance takes nobody off the frontier. The relation is transitive: whoever is off the
frontier is dominated by one that is on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A figure of which less is better, and the better end of its interval, at most ``value``."""

    value: float
    best: float

    @classmethod
    def counted(cls, value: float) -> Measure:
        """A figure without an interval."""
        return cls(value, value)


@dataclass(frozen=True)
class Point:
    """A candidate and its measures, the same ones in the same order as those that it is compared with."""

    name: str
    measures: tuple[Measure, ...]

    def dominates(self, other: Point) -> bool:
        pairs = list(zip(self.measures, other.measures, strict=True))
        return all(a.value <= b.value for a, b in pairs) and any(a.value < b.best for a, b in pairs)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other dominates, in their order."""
    return [point for point in points if not any(other.dominates(point) for other in points)]


def dominator(point: Point, members: Sequence[Point]) -> Point | None:
    """The one of ``members`` that dominates ``point`` with the least figures, first by the first measure; None for a member."""
    dominating = [member for member in members if member.dominates(point)]
    return min(dominating, key=lambda p: ([m.value for m in p.measures], p.name), default=None)
