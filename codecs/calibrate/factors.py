"""Factorizations of large matrices, each on one thread.

On several, a library's threads spin while they wait for one another. Beside another process on the same cores, the eigenvectors
of a matrix [1600, 1600] took 20 s on two threads, and half a second on one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.threads import one_thread


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n], rising, and eigenvectors in the columns of [n, n]."""
    with one_thread():
        values, vectors = torch.linalg.eigh(symmetric)
    return values, vectors


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of what ``columns`` [n, rank] span."""
    with one_thread():
        basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def solve(left: Tensor, right: Tensor) -> Tensor:
    """x [n, m] of ``left @ x == right``."""
    with one_thread():
        x: Tensor = torch.linalg.solve(left, right)
    return x
