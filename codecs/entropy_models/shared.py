"""One histogram for all rows."""

from __future__ import annotations

import numpy as np

from kvtool.codecs.entropy_models.model import Ints, Tables, precision, shares
from kvtool.codecs.errors import CodecError


class Shared:
    """A byte for each level: the square root of its frequency, where 255 stands for 1.

    The error of a counted frequency grows with its square root, which is why that is stored.
    """

    def fit(self, counts: Ints, tokens: int) -> bytes:
        total = counts.sum(0)
        roots = np.sqrt(total / max(int(total.sum()), 1)) * 255
        # Rounded up, so that a rare code does not become an impossible one.
        return bytes(np.ceil(roots).clip(0, 255).astype(np.uint8))

    def nbytes(self, rows: int, levels: int, tokens: int) -> int:
        return levels

    def tables(self, side: bytes, rows: int, levels: int, tokens: int) -> Tables:
        if len(side) != levels:
            raise CodecError(f"a histogram of {len(side)} bytes, expected {levels}")
        roots = np.frombuffer(side, np.uint8).astype(np.int64)[None]
        weights = roots * roots + (roots.sum() == 0)
        return Tables(shares(weights, 1 << precision(levels)), np.zeros(rows, np.int64))
