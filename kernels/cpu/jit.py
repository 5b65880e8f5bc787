"""How loops are compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """``function``, compiled for the types it is first called with, and kept on disk for later processes.

    Other threads run meanwhile. There is no fast math: a product is rounded before it is added to, as torch
    rounds it. Hand in contiguous arrays of few types: each combination of types and layouts is compiled separately.
    """
    return cast(F, numba.njit(cache=True, nogil=True)(function))
