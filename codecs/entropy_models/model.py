"""The contract of an entropy model, and how weights become integer frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kvtool.kernels.cpu.jit import compiled

Ints: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


@dataclass(frozen=True)
class Tables:
    """``shares`` [K, levels] are positive and sum to ``2**precision``; ``table`` [rows] is each row's index."""

    shares: Ints
    table: Ints

    @property
    def cumulative(self) -> Ints:
        """[K, levels + 1], from 0 to ``2**precision``."""
        return np.pad(self.shares.cumsum(1), ((0, 0), (1, 0)))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """``cumulative`` and ``table`` in int32, as kernels take them."""
        return torch.from_numpy(self.cumulative.astype(np.int32)), torch.from_numpy(
            self.table.astype(np.int32)
        )


class Model(Protocol):
    """``counts`` [rows, levels] are how often each code stands in each row of ``tokens`` codes."""

    def fit(self, counts: Ints, tokens: int) -> bytes:
        """Side bytes that describe the rows' distributions."""

    def nbytes(self, rows: int, levels: int, tokens: int) -> int:
        """How many side bytes there can be."""

    def tables(self, side: bytes, rows: int, levels: int, tokens: int) -> Tables:
        """The tables that side bytes describe, whatever they are. Raises CodecError for a wrong number."""


def precision(levels: int) -> int:
    """Bits of a table: its slots fit a first-level cache, and codes that are never seen cost little."""
    return 12 if levels <= 64 else 14


@compiled
def shares(weights: Ints, total: int) -> Ints:
    """Positive shares of ``total`` for weights [K, levels] >= 0 below 2**40, not all 0 in a row."""
    tables, levels = weights.shape
    split = np.empty((tables, levels), np.int64)
    for k in range(tables):
        whole, remainder, largest = weights[k].sum(), total, 0
        for s in range(levels):
            split[k, s] = 1 + weights[k, s] * (total - levels) // whole
            remainder -= split[k, s]
            if weights[k, s] > weights[k, largest]:
                largest = s
        # The remainder of rounding goes where it changes least.
        split[k, largest] += remainder
    return split


def cost(counts: Ints, table: Ints) -> Floats:
    """Bits that codes counted [rows, levels] take under ``table`` [rows or 1, levels], for each row."""
    bits: Floats = -(counts * np.log2(table / (1 << precision(table.shape[1])))).sum(1)
    return bits
