"""The speed at which this machine prefills with a model, remembered to say what a cache saved and what work will take."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from kvtool.digest import canonical_json
from kvtool.errors import StoreError
from kvtool.system.cache_dir import cache_dir
from kvtool.system.files import write_atomic

# Shorter runs are mostly warm-up.
_ENOUGH_TOKENS = 500


def remember(fingerprint: str, tokens: int, seconds: float) -> None:
    """Keeps the speed of a run that was long enough to measure it."""
    if tokens >= _ENOUGH_TOKENS:
        # A speed that cannot be kept is measured again, nothing else is lost.
        with suppress(StoreError):
            write_atomic(_path(fingerprint), [canonical_json({"tokens": tokens, "seconds": seconds})])


def recall(fingerprint: str) -> float | None:
    """Tokens per second, or None if nothing was measured on this machine."""
    try:
        run = json.loads(_path(fingerprint).read_bytes())
        return float(run["tokens"] / run["seconds"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def time_needed(fingerprint: str, tokens: float) -> str:
    """How long running the model over that many tokens takes, as the end of a line; empty where nobody knows, or for none."""
    speed = recall(fingerprint)
    return f"; about {tokens / speed:,.0f} s" if speed and tokens else ""


def _path(fingerprint: str) -> Path:
    return cache_dir() / "speeds" / f"{fingerprint}.json"
