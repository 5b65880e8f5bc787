"""Every implementation of the kernels, as one fixture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvtool.kernels import dispatch


@contextmanager
def interpreted() -> Iterator[None]:
    """Triton is interpreted: what it decorates, and what it launches, in here.

    Set for longer, the variable would reach the processes of other tests, where kernels are to be compiled.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield


with interpreted():
    IMPLEMENTATIONS = dispatch.implementations()


@pytest.fixture(scope="module", params=list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS))
def kernels(request: pytest.FixtureRequest) -> Iterator[dispatch.Kernels]:
    """Each implementation that can run here; Triton's is interpreted."""
    with interpreted():
        yield request.param
