"""How fast caches are loaded and prompts are read."""

from __future__ import annotations

import math

from kvtool.system.throughput import LASTS, Rate

MEASURED_TOKENS = 256
"""Of a pass, at least: shorter ones mostly read the model's weights."""


class Speeds:
    """``reading`` is the model's, in tokens of prompts; ``loading`` a variant's, in bytes of artifacts, with its decoding.

    Loading is tried where nothing is known of it, prefilling never is.
    """

    def __init__(self, tokens_per_second: float | None = None) -> None:
        self.reading = Rate(tokens_per_second, unknown=math.inf)
        self._loading: dict[str, Rate] = {}

    def loading(self, variant: str) -> Rate:
        return self._loading.setdefault(variant, Rate(lasts=LASTS))

    def read(self, tokens: int, seconds: float) -> None:
        if tokens >= MEASURED_TOKENS:
            self.reading.took(tokens, seconds)
