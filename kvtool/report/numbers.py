"""Numbers as they are shown: no more digits than their 95 % interval leaves meaning to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
ABSENT = "–"
TINY = 1e-6  # smaller numbers come from rounding


@dataclass(frozen=True)
class Cell:
    """A number as text. ``value`` is the number itself; ``spread`` and ``interval`` are empty where there is no interval.

    It is not ``significant`` if its interval holds what the raw cache would give.
    """

    text: str
    value: float | None = None
    spread: str = ""
    interval: str = ""
    significant: bool = True

    def __bool__(self) -> bool:
        return self.value is not None


def plain(value: float | None) -> str:
    """Three significant digits or more, without an exponent where that is readable, and without idle zeros."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) < TINY:
        return f"{value:.0e}"
    text = _fixed(value, _decimals(value) + 2)
    return text.rstrip("0").rstrip(".")


def hundredths(value: float) -> Cell:
    return Cell(_fixed(value, 2), value)


def estimated(estimate: Json | None, *, scale: float = 1.0, significant: bool = True) -> Cell:
    """The cell of ``estimate`` times ``scale``. The spread reaches the farther end of the interval."""
    if estimate is None:
        return Cell(ABSENT)
    if not is_finite(estimate):
        return Cell(plain(estimate["value"]), estimate["value"], significant=significant)
    value, low, high = (estimate[name] * scale for name in ("value", "low", "high"))
    if estimate["n"] < 2 and value:
        return Cell(plain(value), estimate["value"], "±?", significant=significant)
    reach = max(high - value, value - low)
    if not reach > 0 or max(abs(low), abs(high)) < TINY:
        return Cell(plain(value), estimate["value"], significant=significant)
    # A spread of 0.014 shown as 0.01 would lose a third of itself.
    places = _decimals(reach) + (reach * 10 ** _decimals(reach) < 2)
    return Cell(
        _fixed(value, places),
        estimate["value"],
        f"±{_fixed(reach, places)}",
        f"{_fixed(low, places)} to {_fixed(high, places)}",
        significant,
    )


def is_finite(estimate: Json | None) -> bool:
    """Whether there is something to draw. A cache broken badly enough gives predictions that are no numbers."""
    return estimate is not None and all(math.isfinite(estimate[name]) for name in ("value", "low", "high"))


def holds_zero(estimate: Json | None) -> bool:
    """Whether zero lies within the interval, unless the value is zero exactly."""
    return (
        estimate is not None
        and estimate["low"] < estimate["high"]
        and estimate["low"] <= 0 <= estimate["high"]
    )


def _decimals(value: float) -> int:
    """Decimal places at which ``value`` has its first digit."""
    return min(9, max(0, -math.floor(math.log10(abs(value)))))


def _fixed(value: float, places: int) -> str:
    text = f"{value:.{max(0, places)}f}"
    return text.removeprefix("-") if float(text) == 0 else text
