"""Cumulative distributions as integers, the same on every machine."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np

from kvtool.codecs.entropy_models.model import Ints

ONE = 1 << 24
"""Probability 1."""
STEPS = 64
"""Steps of a standard deviation."""
WIDTH = 8
"""Standard deviations to each side. Values beyond count as the last."""
SCALES = 64
"""Number of standard deviations that can be named: 2**(k / 6 - 4) for k below it."""


@cache
def shapes() -> Ints:
    """Normal, logistic and Laplace distribution [3, 2 * WIDTH * STEPS + 1] of variance 1, in units of ``ONE``.

    ``decimal`` rounds correctly, so these are the same wherever they are computed.
    """
    n = WIDTH * STEPS
    with localcontext(prec=30):
        half = [(-((Decimal(i) / (2 * STEPS)) ** 2) / 2).exp() for i in range(2 * n + 1)]
        simpson = [half[2 * i] + 4 * half[2 * i + 1] + half[2 * i + 2] for i in range(n)]
        normal = [Decimal(0)]
        for area in simpson:
            normal.append(normal[-1] + area)
        normal = [area / normal[-1] / 2 for area in normal]
        width = Decimal(3).sqrt() / Decimal("3.14159265358979323846264338328")
        logistic = [1 / (1 + (-Decimal(i) / STEPS / width).exp()) - Decimal("0.5") for i in range(n + 1)]
        laplace = [(1 - (-Decimal(i) / STEPS * Decimal(2).sqrt()).exp()) / 2 for i in range(n + 1)]
        sides = [[int((y * ONE).to_integral_value()) for y in side] for side in (normal, logistic, laplace)]
    curves = [[ONE // 2 - y for y in reversed(side[1:])] + [ONE // 2 + y for y in side] for side in sides]
    return np.array(curves, np.int64)


@cache
def inverse_scales() -> Ints:
    """1 / 2**(k / 6 - 4) for each k below ``SCALES``, in units of 2**-16."""
    with localcontext(prec=30):
        scales = [Decimal(2) ** (Decimal(20) - Decimal(k) / 6) for k in range(SCALES)]
        return np.array([int(scale.to_integral_value()) for scale in scales], np.int64)
