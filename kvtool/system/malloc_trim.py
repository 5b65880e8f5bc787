"""Returns freed memory to the system.

The C library keeps it for later, in pieces among memory that is in use: a server under load would grow to half again its
size.
"""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import suppress

PAUSE = 1.0
"""Seconds between two trims: after each, the system must hand out its pages again."""


def trim() -> None:
    """Returns what is free now. Only glibc keeps so much that it has a function for this."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


class Trimmer:
    """Trims in a thread of its own, soon after ``freed`` says that something large was."""

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
