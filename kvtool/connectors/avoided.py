"""What could not be loaded, and is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Generic, TypeVar

AVOIDED_SECONDS = 60.0
"""For which it is not tried again."""

K = TypeVar("K", bound=Hashable)


class Avoided(Generic[K]):
    """Keys that were added within the last ``AVOIDED_SECONDS``."""

    def __init__(self) -> None:
        self._until: dict[K, float] = {}

    def __contains__(self, key: K) -> bool:
        return time.monotonic() < self._until.get(key, 0.0)

    def add(self, key: K) -> None:
        """Adds a key, or begins its time anew. Those whose time is over are dropped."""
        now = time.monotonic()
        self._until = {other: until for other, until in self._until.items() if until > now}
        self._until[key] = now + AVOIDED_SECONDS

    def discard(self, key: K) -> None:
        """Lets a key be tried again."""
        self._until.pop(key, None)
