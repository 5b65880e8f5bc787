"""What other programs take of the machine while something is measured."""

from __future__ import annotations

import time

import psutil

BUSY = 0.2
"""Share of the machine's cores above which others are named as what may have slowed it."""


class OtherPrograms:
    """Counts processor time from now on: that of all programs, and this process's own."""

    def __init__(self) -> None:
        self._started, self._all, self._own = time.monotonic(), _busy_seconds(), time.process_time()

    @property
    def share(self) -> float:
        """The share of the machine's cores that others kept busy."""
        available = (time.monotonic() - self._started) * (psutil.cpu_count() or 1)
        others = _busy_seconds() - self._all - (time.process_time() - self._own)
        return min(max(others / max(available, 1e-9), 0.0), 1.0)

    def notes(self) -> list[str]:
        """A line if they may have slowed what was measured."""
        share = self.share
        if share <= BUSY:
            return []
        busy = f"Other programs kept {share:.0%} of this machine's cores busy meanwhile"
        return [f"{busy}: times are longer than on an idle one, and uneven. Measure again later."]


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # Steal is what a host takes from a virtual machine. Not every system counts all of them.
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
