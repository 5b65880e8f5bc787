"""Memory that was freed goes back to the system.

The C library keeps it for later, in pieces among what is still held: a server under load would grow to half again what it
holds.
"""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import suppress

PAUSE = 1.0
"""Seconds between two times: what computes has to ask the system anew for the pages that it had."""


def trim() -> None:
    """Gives back what is free now. Only glibc keeps so much that it has a function for this."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


class Trimming:
    """Does so in a thread of its own, soon after it is told that something large was ``freed``."""

    def __init__(self) -> None:
        self._freed = threading.Event()

    def freed(self) -> None:
        self._freed.set()

    def start(self) -> None:
        threading.Thread(target=self._run, name="heap", daemon=True).start()

    def _run(self) -> None:
        while self._freed.wait():
            self._freed.clear()
            trim()
            time.sleep(PAUSE)
