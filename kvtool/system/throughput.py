"""Rates that were measured: of a disk, a link, a model, and of loading and prefilling caches."""

from __future__ import annotations

import math
import time

WEIGHT = 0.5
"""Of the latest measurement: what was long ago says little about a disk or a link now."""

LASTS = 300.0
"""Seconds for which a disk's or a link's rate is believed. Without an end, one slow moment would have nothing loaded ever
again."""

MEASURED_TOKENS = 256
"""Tokens of a pass that is measured, at least: shorter passes mostly read the model's weights."""


class Rate:
    """Units per second, the latest measurements weighing most.

    An estimate is ``unknown`` seconds until something was measured, and again ``lasts`` seconds after the last measurement.
    """

    def __init__(
        self, per_second: float | None = None, *, unknown: float = 0.0, lasts: float = math.inf
    ) -> None:
        self.unknown, self.lasts = unknown, lasts
        self._per_second, self._measured = per_second, time.monotonic()

    def took(self, units: int, seconds: float) -> None:
        """Adds a measurement."""
        latest = units / max(seconds, 1e-9)
        before = latest if self.is_unknown else self._per_second
        self._per_second = WEIGHT * latest + (1 - WEIGHT) * (before or 0.0)
        self._measured = time.monotonic()

    def seconds(self, units: int) -> float:
        """Estimates how long ``units`` take."""
        return self.unknown if self.is_unknown else units / (self._per_second or 1.0)

    @property
    def is_unknown(self) -> bool:
        return not self._per_second or time.monotonic() - self._measured > self.lasts


class Throughput:
    """The rates by which a cache is loaded or prefilled.

    ``prefill`` is in tokens of prompts per second, ``load`` in bytes of artifacts, decoding included, of each variant. An
    unknown load takes no time, so that it is tried; an unknown prefill takes for ever, so that it never is.
    """

    def __init__(self, tokens_per_second: float | None = None) -> None:
        self.prefill = Rate(tokens_per_second, unknown=math.inf)
        self._loads: dict[str, Rate] = {}

    def load(self, variant: str) -> Rate:
        return self._loads.setdefault(variant, Rate(lasts=LASTS))

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Adds a pass of the model to ``prefill``, unless it was too short to say anything."""
        if tokens >= MEASURED_TOKENS:
            self.prefill.took(tokens, seconds)
