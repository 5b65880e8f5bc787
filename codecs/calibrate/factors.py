"""Factorizations of large matrices, each on one thread.

On several, a library's threads spin while they wait for one another. Beside another process on the same cores, the eigenvectors
of a matrix [1600, 1600] took 20 s on two threads, and half a second on one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.threads import one_thread

ROWS = 4096
"""That are in float64 at once."""
DEPENDENT = 1e-5
"""Share of the largest diagonal entry of a root, below which columns are nearly dependent."""


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n], rising, and eigenvectors in the columns of [n, n]."""
    with one_thread():
        values, vectors = torch.linalg.eigh(symmetric)
    return values, vectors


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis [n, rank] float32 of what ``columns`` [n, rank] span.

    By the root of their products in float64 where they are far from dependent (Cholesky QR): all large work is then a
    product of matrices.
    """
    products = torch.zeros(columns.shape[1], columns.shape[1], dtype=torch.float64)
    for part in torch.split(columns, ROWS):
        rows = part.double()
        products.addmm_(rows.mT, rows)
    with one_thread():
        root, failed = torch.linalg.cholesky_ex(products, upper=True)
        diagonal = root.diagonal()
        if failed or diagonal.min() <= DEPENDENT * diagonal.max():
            basis: Tensor = torch.linalg.qr(columns).Q
            return basis
    solved = [
        torch.linalg.solve_triangular(root, part.double(), upper=True, left=False).float()
        for part in torch.split(columns, ROWS)
    ]
    return torch.cat(solved)


def solve(left: Tensor, right: Tensor) -> Tensor:
    """x [n, m] of ``left @ x == right``."""
    with one_thread():
        x: Tensor = torch.linalg.solve(left, right)
    return x
