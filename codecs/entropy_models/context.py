"""Fits the entropy model of transform coefficients, and gives its defaults where nothing was fitted.

``kvtool.kernels.reference.context`` codes under it. To fit one: codes at every step that is meant to be used go
through ``Autoregression``, then with its weights through ``counts``, whose sum goes to ``roots``.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kvtool.codecs.entropy_models.model import Ints, Tables, shares
from kvtool.kernels import dispatch
from kvtool.kernels.reference.context import PRECISION
from kvtool.kernels.reference.context_model import BUCKETS, CLASSES, ONE, QUIETEST, SLOW, SYMBOLS, Conditions

SHAPE = (BUCKETS, CLASSES, SYMBOLS)
MIDDLE = 200
"""The scale of a mean magnitude of 1."""
LEAST, MOST = -45, 104
"""Magnitudes in steps, in eighths of an octave: from 0.02, so that a silent component can become loud again, to 2**13."""
RIDGE = 0.005
"""Added to the mean square of what a prediction is made from, in steps, so that rare values weigh little."""

BLOCK = 128
"""Tokens whose running means are computed at once."""

ABOVE = (2.5, 7.5, 14.5, 25.5, 46, 8, 24)
"""How far the prediction lies above, in 64ths of a step: the middles of the classes."""
NOT_NEAR_ZERO = 5
"""The first class of predictions that are a step or more from 0."""


def in_steps(scales: Tensor, step: float) -> Tensor:
    """[R] int32, for the kernels: scales [R] uint8 in steps of ``step``.

    log2 of a mean absolute value is ``(scale - 200) / 8``. It is the decimal digits of ``step`` that count.
    """
    with localcontext(prec=30):
        eighths = int((8 * Decimal(repr(step)).ln() / Decimal(2).ln()).to_integral_value())
    return (scales.to(torch.int32) - MIDDLE - eighths).clamp(LEAST, MOST)


class Autoregression:
    """Weights that predict components [R] from their last value and their running mean, from sums over tokens, in steps."""

    def __init__(self, components: int) -> None:
        self.sums, self.tokens = torch.zeros(5, components, dtype=torch.float64), 0

    def add(self, codes: Tensor, exponents: Tensor) -> None:
        """One segment at one step: ``codes`` [T, R] int16, ``exponents`` [T] uint8."""
        levels = codes.double() * torch.exp2((exponents.double() - 32) / 2)[:, None]
        before = torch.cat([torch.zeros(1, codes.shape[1]), levels])[: len(levels)]
        mean = torch.zeros(codes.shape[1], dtype=torch.float64)
        for last, level in zip(torch.split(before, BLOCK), torch.split(levels, BLOCK), strict=True):
            means = _running_means(last, mean)
            mean = means[-1]
            products = (last * last, last * means, means * means, last * level, means * level)
            self.sums += torch.stack([product.sum(0) for product in products])
        self.tokens += len(codes)

    def weights(self) -> Tensor:
        """[R, 2] int8, in 128ths, of least squared error."""
        aa, ab, bb, ay, by = self.sums
        aa, bb = aa + RIDGE * max(self.tokens, 1), bb + RIDGE * max(self.tokens, 1)
        solved = torch.stack([bb * ay - ab * by, aa * by - ab * ay], 1) / (aa * bb - ab * ab)[:, None]
        weights: Tensor = (128 * solved).round().clamp(-127, 127).to(torch.int8)
        return weights


def _running_means(rows: Tensor, mean: Tensor) -> Tensor:
    """The running mean after each of ``rows`` [n, R], from ``mean`` [R] before the first."""
    kept, n = 1 - 2.0**-SLOW, len(rows)
    age = torch.arange(n, dtype=torch.float64)[:, None] - torch.arange(n)
    shares = torch.where(age >= 0, 2.0**-SLOW * kept ** age.clamp(min=0), 0)
    return shares @ rows + kept ** torch.arange(1, n + 1, dtype=torch.float64)[:, None] * mean


def counts(codes: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, step: float) -> Tensor:
    """How often each symbol stands in each table, [BUCKETS, CLASSES, SYMBOLS] int64, in one segment.

    ``codes`` [T, R] int16, ``exponents`` [T] uint8, ``scales`` [R] uint8, ``weights`` [R, 2] int8.
    """
    totals = torch.zeros(BUCKETS * CLASSES, SYMBOLS, dtype=torch.int64)
    loudness = torch.full((len(codes),), ONE, dtype=torch.int32)
    dispatch.context_count(codes, Conditions(exponents, in_steps(scales, step), weights, loudness), totals)
    return totals.view(SHAPE)


def roots(counts: Tensor) -> Tensor:
    """[BUCKETS, CLASSES, SYMBOLS] uint8: the square roots of frequencies, where 255 is a table's most frequent.

    A little of a Laplace distribution and of the neighbouring buckets is added, so that a symbol that never occurred has a cost.
    """
    seen = counts.double()
    smooth, known = seen.clone(), torch.from_numpy(_laplace()).double()
    smooth[1:] += seen[:-1] / 64
    smooth[:-1] += seen[1:] / 64
    smooth += 4 * known / known.sum(-1, keepdim=True)
    return (255 * (smooth / smooth.amax(-1, keepdim=True)).sqrt()).round().to(torch.uint8)


def cumulative(roots: Tensor | None) -> Tensor:
    """The tables, [BUCKETS * CLASSES, SYMBOLS + 1] int32, as the kernels take them; Laplace's without roots."""
    weights = _laplace() if roots is None else roots.numpy().astype(np.int64) ** 2
    rows = weights.reshape(-1, SYMBOLS)
    split = shares(rows + (rows.sum(1, keepdims=True) == 0), 1 << PRECISION)
    return Tables(split, np.arange(len(split))).tensors()[0]


@cache
def _laplace() -> Ints:
    """Weights [BUCKETS, CLASSES, SYMBOLS] of Laplace distributions, quantized with a dead zone around 0.

    A bucket is a sum of logarithms that have floors, so below a step the magnitude goes with its square root.
    """
    weights = np.zeros(SHAPE, np.int64)
    with localcontext(prec=20):
        for b in range(BUCKETS):
            octaves = Decimal(b + QUIETEST) / 4
            width = Decimal(2) ** (octaves / (1 if octaves > 0 else 2) - Decimal("0.4"))
            for kind, above in enumerate(ABOVE):
                edge = Decimal("0.5") if kind >= NOT_NEAR_ZERO else Decimal("0.6")
                # Symbol s ends here: codes lie around 0 where the prediction does.
                edges = [1 - edge] * 16 + [edge] * (SYMBOLS - 17)
                ends = [s - 16 + e - Decimal(above) / 64 for s, e in enumerate(edges)]
                tails = [(-abs(end) / width).exp() / 2 for end in ends]
                below = [tail if end < 0 else 1 - tail for end, tail in zip(ends, tails, strict=True)]
                units = [0, *(int(y * (1 << 24)) for y in below), 1 << 24]
                weights[b, kind] = np.diff(units)
    return weights
