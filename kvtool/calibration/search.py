"""The search for the setting of a recipe's dial at which what is measured meets a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

TRIES = 10
"""The most settings that are tried."""

CLOSE = 0.02
"""The distance below the target that is near enough, as a share of it."""

Point = tuple[float, float]
"""A setting, and what was measured with it."""


@dataclass(frozen=True)
class Setting:
    """The value of a recipe's dial, what was measured with it, and whether that meets the target."""

    name: str
    value: float
    measured: float
    met: bool

    @property
    def parameter(self) -> dict[str, float]:
        return {self.name: self.value}


def search(
    measure: Callable[[float], float],
    limit: float,
    *,
    name: str = "",
    start: float,
    between: tuple[float, float],
    rising: bool,
    known: Iterable[float] = (),
    close: float = CLOSE,
    tries: int = TRIES,
) -> Setting:
    """Searches ``between`` for the setting at which ``measure`` is as little as possible below ``limit``.

    ``measure`` rises with the setting if ``rising``, and falls with it otherwise. Each try is where a straight line through
    two points, in logarithms, meets the limit, or halfway where that leads nowhere. ``known`` settings are measured first, the
    safest first, and are no tries. If no setting meets the limit, the result is the nearest.
    """
    good: Point | None = None
    bad: Point | None = None
    # The safe end meets the limit if any setting does.
    safe, far = between if rising else between[::-1]
    for setting in sorted(known, reverse=not rising):
        if (measured := max(measure(setting), 1e-12)) > limit:
            bad = (setting, measured)
            break
        good = (setting, measured)

    def is_done() -> bool:
        if good and (good[1] >= (1 - close) * limit or good[0] == far):
            return True
        return bad is not None and bad[0] == safe

    for _ in range(tries):
        if is_done():
            break
        setting = _next_setting(good, bad, limit, safe, far, close) if good or bad else start
        # Four digits: the setting is written into every artifact, and people type it again.
        setting = float(f"{setting:.4g}")
        measured = max(measure(setting), 1e-12)
        if measured <= limit:
            good = (setting, measured)
        else:
            bad = (setting, measured)
    if good:
        return Setting(name, *good, met=True)
    assert bad is not None
    return Setting(name, *bad, met=False)


def _next_setting(
    good: Point | None, bad: Point | None, limit: float, safe: float, far: float, close: float
) -> float:
    if good and bad:
        return _between(good, bad, limit * (1 - close / 2))
    setting, measured = good or bad or (safe, limit)
    aim = limit * (1 - close / 2)
    # Sizes and errors are roughly proportional to the setting, so the factor that is missing is a guess.
    factor = max(aim / measured, measured / aim, 1.05)
    end = far if good else safe
    return min(setting * factor, end) if end > setting else max(setting / factor, end)


def _between(good: Point, bad: Point, aim: float) -> float:
    """Where the line through both points, in logarithms, is at ``aim``."""
    (x0, y0), (x1, y1) = good, bad
    share = (math.log(aim) - math.log(y0)) / (math.log(y1) - math.log(y0))
    # Near the ends of the interval the search could stand still.
    return math.exp(math.log(x0) + min(max(share, 0.1), 0.9) * (math.log(x1) - math.log(x0)))
