"""How fast something goes, as it was measured: a disk, a link, a model."""

from __future__ import annotations

import math
import time

WEIGHT = 0.5
"""Of the latest measurement: what was long ago says little about a disk or a link now."""

LASTS = 300.0
"""Seconds for which a disk or a link is believed to be as fast. Without an end, one slow moment would have nothing loaded ever
again."""


class Rate:
    """Units per second, the latest ones weighing most. Whatever is asked takes ``unknown`` seconds until it is measured."""

    def __init__(
        self, per_second: float | None = None, *, unknown: float = 0.0, lasts: float = math.inf
    ) -> None:
        self.unknown, self.lasts = unknown, lasts
        self._per_second, self._measured = per_second, time.monotonic()

    def took(self, units: int, seconds: float) -> None:
        found = units / max(seconds, 1e-9)
        before = found if self.is_unknown else self._per_second
        self._per_second = WEIGHT * found + (1 - WEIGHT) * (before or 0.0)
        self._measured = time.monotonic()

    def seconds(self, units: int) -> float:
        return self.unknown if self.is_unknown else units / (self._per_second or 1.0)

    @property
    def is_unknown(self) -> bool:
        return not self._per_second or time.monotonic() - self._measured > self.lasts
