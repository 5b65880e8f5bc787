"""Peak memory of a block of code, where the system reports it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from kvtool.system.malloc_trim import trim

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Peak ``nbytes`` beyond what the process used before; None where the system does not report it."""

    nbytes: int | None = None


@contextmanager
def peak() -> Iterator[Peak]:
    """Measures the process's memory (Linux) and, if there is one, the GPU's."""
    measured = Peak()
    before = None
    gc.collect()
    # Memory that earlier work freed and the allocator kept would hide what is allocated now.
    trim()
    with suppress(OSError):
        # 5 resets the peak to what is resident now.
        _CLEAR.write_text("5")
        before = status("VmRSS")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    yield measured
    after = status("VmHWM")
    if before is not None and after is not None:
        measured.nbytes = max(0, after - before)
        if on_gpu:
            measured.nbytes += max(0, torch.cuda.max_memory_allocated() - held)


def status(field: str) -> int | None:
    """Bytes in a field of /proc/self/status, such as VmRSS or VmHWM."""
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
