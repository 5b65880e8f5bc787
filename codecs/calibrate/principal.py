"""The principal components of rows that come in parts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kvtool.codecs.calibrate.factors import eigh, orthonormal

EXACT_AT_MOST = 8192
"""Channels whose covariance is built: 512 MiB of it. Beyond, the components are found without."""
COLUMNS = 1024
"""Of a covariance, that are computed at once."""
OVERSAMPLING, PASSES = 64, 3


def mean_of(parts: Iterable[Tensor], width: int) -> tuple[Tensor, int]:
    """The mean [width] float32 of all rows, and how many there are."""
    total, rows = torch.zeros(width, dtype=torch.float64), 0
    for part in parts:
        total += part.double().sum(0)
        rows += len(part)
    return (total / max(rows, 1)).float(), rows


def principal(parts: Iterable[Tensor], width: int, rank: int, seed: int) -> Tensor:
    """Orthonormal directions [rank, width] float32 of the largest variance, the largest first.

    ``parts`` are centred rows [n, width]. Where the covariance is too large to hold, or at most half of its
    eigenvectors are wanted, the directions are those of a randomised range (Halko, Martinsson and Tropp, 2011,
    arXiv 0909.4061): of ``rank`` and 64 more random vectors, sent through the covariance three times, and then its
    eigenvectors among them. A covariance that is too large is never built; ``parts`` are gone through several times.
    """
    if width <= EXACT_AT_MOST:
        return leading(_second_moments(parts, width), rank, seed)
    generator = torch.Generator().manual_seed(seed)
    within = torch.randn(width, min(rank + OVERSAMPLING, width), generator=generator)
    for _ in range(PASSES):
        sent = torch.zeros_like(within)
        for part in parts:
            sent += part.mT @ (part @ within)
        within = orthonormal(sent)
    smaller = torch.zeros(within.shape[1], within.shape[1], dtype=torch.float64)
    for part in parts:
        seen = part @ within
        smaller += seen.mT @ seen
    return _fixed(_eigenvectors(smaller, rank) @ within.mT)


def _second_moments(parts: Iterable[Tensor], width: int) -> Tensor:
    """The sum of all rows' outer products [width, width]. What lies below the diagonal is copied, not computed."""
    total = torch.zeros(width, width)
    for part in parts:
        for first in range(0, width, COLUMNS):
            columns = part[:, first : first + COLUMNS]
            total[first : first + COLUMNS, first:].addmm_(columns.mT, part[:, first:])
    return total.triu() + total.triu(1).mT


def leading(symmetric: Tensor, rank: int, seed: int) -> Tensor:
    """The eigenvectors [rank, n] of the largest eigenvalues of a matrix [n, n] that has none below 0.

    Those within a randomised range where at most half of them are wanted: minutes become seconds.
    """
    n = len(symmetric)
    if 2 * (rank + OVERSAMPLING) > n:
        return _fixed(_eigenvectors(symmetric, rank))
    generator = torch.Generator().manual_seed(seed)
    within = torch.randn(n, rank + OVERSAMPLING, generator=generator)
    for _ in range(PASSES):
        within = orthonormal(symmetric @ within)
    return _fixed(_eigenvectors(within.mT @ (symmetric @ within), rank) @ within.mT)


def _eigenvectors(symmetric: Tensor, rank: int) -> Tensor:
    # In float32, which halves the wait: directions are kept in 16 bits or fewer.
    _, vectors = eigh(symmetric.float())
    return vectors.mT.flip(0)[:rank]


def _fixed(directions: Tensor) -> Tensor:
    """An eigenvector's sign is the library's whim."""
    return directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
