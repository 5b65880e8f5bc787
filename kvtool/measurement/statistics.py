"""Means with 95 % intervals, by a bootstrap in two levels.

Questions about one context, and tokens of one document, are not independent. So whole contexts are drawn again, and within
each of them runs of neighbouring pieces. Intervals are between percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95

BLOCK = 32
"""Neighbouring tokens that are drawn together, since their losses are alike."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, from ``n`` independent documents or contexts."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mean(clusters: Sequence[Sequence[float]], *, block: int = 1, share: bool = False) -> Estimate | None:
    """The mean of all pieces in all clusters, None if there are none. The options are those of ``ratio``."""
    return ratio([[(value, 1.0) for value in cluster] for cluster in clusters], block=block, share=share)


def ratio(
    clusters: Sequence[Sequence[tuple[float, float]]], *, block: int = 1, share: bool = False
) -> Estimate | None:
    """The sum of the first over the sum of the second of all pairs; None if the second is 0.

    ``block`` pairs in a row are drawn together. If ``share`` is set, the ratio is a share of outcomes. Where that is 0 or 1,
    drawing again never shows anything else, however few pieces there are, so its interval is that of as many equal outcomes
    in a row.
    """
    blocks = [_blocks(cluster, block) for cluster in clusters if len(cluster)]
    whole = sum((b.sum(0) for b in blocks), np.zeros(2))
    if not whole[1]:
        return None
    random = np.random.default_rng(0)
    drawn = np.zeros((DRAWS, 2))
    for _ in blocks:
        # Each draw takes as many clusters as there are, and of each as many of its blocks as it has.
        chosen = random.integers(len(blocks), size=DRAWS)
        for index, cluster in enumerate(blocks):
            draws = np.flatnonzero(chosen == index)
            drawn[draws] += cluster[random.integers(len(cluster), size=(len(draws), len(cluster)))].sum(1)
    defined = drawn[drawn[:, 1] > 0]
    values = defined[:, 0] / defined[:, 1]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(whole[0] / whole[1])
    if share and value in (0.0, 1.0):
        least = (1 - LEVEL) ** (1 / max(1.0, float(whole[1])))
        low, high = (least, 1.0) if value else (0.0, 1 - least)
    return Estimate(value, min(float(low), value), max(float(high), value), len(blocks))


def _blocks(pairs: Sequence[tuple[float, float]], block: int) -> NDArray[np.float64]:
    array = np.asarray(pairs, dtype=np.float64)
    return np.add.reduceat(array, np.arange(0, len(array), block))
