"""Memory that this process can still take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

GROUP = Path("/sys/fs/cgroup")
"""Of a container's own control group (Linux, version 2), as a process in it sees that."""


def available_memory() -> int:
    """Bytes that are free, or can be freed, on this machine; fewer where its container's limit allows fewer."""
    free: int = psutil.virtual_memory().available
    # No such files, or no limit, which is written as "max".
    with suppress(OSError, ValueError, KeyError):
        limit = int((GROUP / "memory.max").read_text())
        lines = (GROUP / "memory.stat").read_text().splitlines()
        statistics = {name: int(value) for name, value in (line.split() for line in lines)}
        # Pages of files count as used and are given back before memory is refused.
        used = int((GROUP / "memory.current").read_text()) - statistics["inactive_file"]
        free = min(free, max(limit - used, 0))
    return free
