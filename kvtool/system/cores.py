"""Which of the processor's cores a thread may run on."""

from __future__ import annotations

import os
from pathlib import Path

_TASKS = Path("/proc/self/task")


def process_cores() -> set[int]:
    """The cores of all threads of this process; empty where the system does not tell.

    A thread may run on its maker's cores. Where an engine has bound the thread that makes others to one core, all of them would
    share it.
    """
    cores: set[int] = set()
    if hasattr(os, "sched_getaffinity") and _TASKS.is_dir():
        for task in _TASKS.iterdir():
            try:
                cores |= os.sched_getaffinity(int(task.name))
            except OSError:
                continue  # It has ended.
    return cores


def use_cores(cores: set[int]) -> None:
    """Lets the calling thread run on ``cores``, if there are any."""
    if cores:
        os.sched_setaffinity(0, cores)
