"""How kernels are compiled for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

Kernel = Any  # what triton makes of a function

# Entries that one program takes.
BLOCK = 1024

# A product is rounded before it is added to, as on the CPU, instead of both at once: the same bits everywhere.
OPTIONS = {"enable_fp_fusion": False}


def kernel(function: Callable[..., Any]) -> Kernel:
    """``function``, compiled when it is first launched; interpreted, on the CPU, if TRITON_INTERPRET is 1 now."""
    return triton.jit(function)


def blocks(entries: int) -> int:
    """Programs that ``entries`` take, at least one: an empty grid cannot be launched."""
    return max(-(-entries // BLOCK), 1)
