"""The entropy model of transform coefficients: expectations from earlier ones, for ``kvtool.kernels.reference.context``.

Components vary by orders of magnitude, tokens are loud or quiet as a whole, and the first components change
little from token to token. Scale, history and loudness, weighted, give the logarithm of the expected magnitude. It
chooses one of ``BUCKETS`` tables, quarters of an octave; larger magnitudes have low bits that are coded without a
model. Coded is the difference to the nearest predicted code, with its sign turned so that the prediction is above it;
how far above chooses one of ``CLASSES``. All in integers, which are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

from torch import Tensor

BUCKETS, CLASSES, SYMBOLS = 40, 7, 33
QUIETEST = -31
"""The first bucket, in quarters of an octave."""
LOUD = 8
"""The last, past which a code's low bits are coded apart."""
SCALE, HISTORY, LOUDNESS = 11, 5, 12
"""Weights of the three logarithms, in sixteenths. Near the optimum it is flat."""
SLOW, SLOWER = 5, 6
"""Running means forget 1/32 with each token, and loudness 1/64 with each component."""
ONE = 1 << 16
"""A common step, and a loudness of 1."""
LARGEST, LOUDEST = ONE << 13, ONE << 3
HISTORY_FLOOR, LOUDNESS_FLOOR = ONE // 100, ONE // 20
"""Added before logarithms, so that a component that was zero can become loud again."""
EXPONENTS = 64
NEAR, FAR = (5, 10, 19, 32), 16
"""Where classes begin, in 64ths of a step: of predictions less than a step from 0, and of others."""

LOG = tuple(((2 * j + 65) ** 64).bit_length() - 1 - 6 * 64 for j in range(32))
"""64 * log2(1 + (j + 1/2) / 32), rounded down."""
EIGHTHS = tuple(isqrt(isqrt(isqrt(1 << (8 * 16 + j)))) for j in range(8))
"""2**(j / 8) in units of 2**-16, rounded down."""


def log2(x: int) -> int:
    """log2(x / ONE) of a positive integer, in 64ths."""
    n = x.bit_length() - 1
    return 64 * (n - 16) + LOG[(x << 5 >> n) & 31]


def power(eighths: int) -> int:
    """2**(eighths / 8) in units of 2**-16, for -240 to 240."""
    return EIGHTHS[eighths & 7] << 30 >> (30 - (eighths >> 3))


class Conditions(NamedTuple):
    """What codes [T, C] of a band depend on.

    Token t was quantized with ``2**((exponents[t] - 32) / 2)`` of a common step; ``exponents`` [T] uint8, up to 64.
    ``scales`` [C] int32 are log2 of a component's mean magnitude in common steps, in eighths of an octave, within 120.
    ``weights`` [C, 2] int8 predict a component from its last value and from its running mean, in 128ths. ``loudness``
    [T] int32 says how large a token's components have been, relative to their scales: it starts at ``ONE``, is
    written to, and keeps its last value for the components of the next band.
    """

    exponents: Tensor
    scales: Tensor
    weights: Tensor
    loudness: Tensor


@dataclass
class Component:
    """The memory of one component, in units of ``1 / ONE`` of a common step."""

    scale: int
    weights: tuple[int, int]
    history: int
    last: int = 0
    mean: int = 0


@dataclass(frozen=True)
class Expected:
    """``table`` and the number of ``low`` bits of a code; it is ``middle`` plus a difference, or minus if ``turned``."""

    table: int
    low: int
    middle: int
    turned: bool
    value: int


def expect(component: Component, loudness: int, exponent: int) -> Expected:
    last, mean = component.weights
    value = last * (component.last >> 8) + mean * (component.mean >> 8)
    predicted = min(max(value * power(-4 * exponent) >> 25, -(1 << 19)), 1 << 19)
    middle = (predicted + 32) >> 6 if abs(predicted) >= 64 else 0
    above = predicted - 64 * middle
    kind = sum(abs(above) >= edge for edge in NEAR) if middle == 0 else len(NEAR) + 1 + (abs(above) >= FAR)
    magnitude = (
        8 * SCALE * component.scale
        + HISTORY * log2(component.history + HISTORY_FLOOR)
        + LOUDNESS * log2(loudness + LOUDNESS_FLOOR)
        - 512 * exponent
    )
    bucket = (magnitude + 128) >> 8
    low = min(max((bucket - LOUD + 3) >> 2, 0), 15)
    bucket = min(max(bucket - 4 * low, QUIETEST), LOUD) - QUIETEST
    return Expected(bucket * CLASSES + kind, low, middle, above < 0, 2 * value)


def learn(component: Component, loudness: int, exponent: int, code: int, expected: Expected) -> int:
    """Remember a code; returns the loudness after it."""
    return loudness + ((remember(component, exponent, code, expected) - loudness) >> SLOWER)


def remember(component: Component, exponent: int, code: int, expected: Expected) -> int:
    """Remember a code; returns how large it is, relative to its component's scale."""
    level = min(max(code * power(4 * exponent), -LARGEST), LARGEST)
    off = min(abs(level - expected.value), LARGEST) if code or expected.middle else 0
    component.history += (off - component.history) >> SLOW
    component.mean += (level - component.mean) >> SLOW
    component.last = level
    return min((off >> 8) * power(-component.scale) >> 8, LOUDEST)
