"""The expectation of transform coefficients, for all components of a token at once, and tables as loops read them.

numba does not recompile what it cached when a function in another file has changed: after a change here, remove the caches
(``__pycache__/*.nb?``) of this folder.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from kvtool.kernels.cpu.jit import compiled
from kvtool.kernels.reference import context_model as model

Ints: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Int: TypeAlias = Any
"""Of either sign, in 64 bits."""

CLASSES, QUIETEST, LOUD = model.CLASSES, model.QUIETEST, model.LOUD
SCALE, HISTORY, LOUDNESS = model.SCALE, model.HISTORY, model.LOUDNESS
SLOW, SLOWER = model.SLOW, model.SLOWER
LARGEST, LOUDEST = model.LARGEST, model.LOUDEST
HISTORY_FLOOR, LOUDNESS_FLOOR = model.HISTORY_FLOOR, model.LOUDNESS_FLOOR
NEAR_1, NEAR_2, NEAR_3, NEAR_4 = model.NEAR
FAR = model.FAR
LOG, EIGHTHS = np.array(model.LOG), np.array(model.EIGHTHS)

RUN = 8
"""Bits of the slots whose first symbol is looked up."""


def table_entries(cumulative: Tensor) -> Ints:
    """Each symbol's share and start in a word."""
    bounds = cumulative.numpy().astype(np.uint32)
    return ((bounds[:, 1:] - bounds[:, :-1]) << np.uint32(16)) | bounds[:, :-1]


@compiled
def first_symbols(entries: Ints) -> Ints:
    """For each table, the first symbol of each run of 2**RUN slots."""
    tables, symbols = entries.shape
    first = np.empty((tables, 1 << (16 - RUN)), np.uint8)
    for k in range(tables):
        s = 0
        for run in range(1 << (16 - RUN)):
            while s + 1 < symbols and np.int64(entries[k, s + 1] & np.uint32(0xFFFF)) <= run << RUN:
                s += 1
            first[k, run] = s
    return first


@compiled
def power(eighths: Int) -> Int:
    return (EIGHTHS[eighths & 7] << 30) >> (30 - (eighths >> 3))


@compiled
def log2(x: Int) -> Int:
    """By the bits of a float64, which holds ``x`` as it is."""
    bits = np.float64(x).view(np.int64)
    return 64 * ((bits >> 52) - 1039) + LOG[(bits >> 47) & 31]


@compiled
def memory_of(scales: Ints) -> Ints:
    """For each component its memory (history, last, mean), its expectation (value, middle, kind, magnitude) and 1 / scale."""
    memory = np.zeros((8, len(scales)), np.int64)
    for i in range(len(scales)):
        memory[0, i], memory[7, i] = power(scales[i]), power(-scales[i])
    return memory


@compiled
def expect(memory: Ints, scales: Ints, weights: Ints, exponent: Int) -> None:
    history, last, mean, value, middle, kind, magnitude = memory[:7]
    back = power(-4 * exponent)
    for i in range(len(scales)):
        expected = weights[i, 0] * (last[i] >> 8) + weights[i, 1] * (mean[i] >> 8)
        predicted = min(max((expected * back) >> 25, -(1 << 19)), 1 << 19)
        nearest = (predicted + 32) >> 6 if abs(predicted) >= 64 else 0
        above = predicted - 64 * nearest
        size = abs(above)
        near = np.int64(size >= NEAR_1) + (size >= NEAR_2) + (size >= NEAR_3) + (size >= NEAR_4)
        far = 5 + np.int64(size >= FAR)
        value[i], middle[i] = 2 * expected, nearest
        # A class, and in the bit above whether differences are turned.
        kind[i] = (near if nearest == 0 else far) | (8 if above < 0 else 0)
        magnitude[i] = (
            8 * SCALE * scales[i] + HISTORY * log2(history[i] + HISTORY_FLOOR) - 512 * exponent + 128
        )


@compiled
def weighed(loud: Int) -> Int:
    """What a loudness adds to a magnitude."""
    return LOUDNESS * log2(loud + LOUDNESS_FLOOR)


@compiled
def table_of(magnitude: Int, kind: Int, added: Int) -> tuple[Int, Int]:
    """The table, and the number of low bits; ``added`` is what ``weighed`` gives."""
    bucket = (magnitude + added) >> 8
    low = min((bucket - LOUD + 3) >> 2, 15) if bucket > LOUD else 0
    bucket = min(max(bucket - 4 * low, QUIETEST), LOUD) - QUIETEST
    return bucket * CLASSES + (kind & 7), low


@compiled
def remember(memory: Ints, i: Int, code: Int, unit: Int) -> Int:
    """Notes what component ``i`` was, for ``learn``; returns how large that is, relative to its scale."""
    level = min(max(code * unit, -LARGEST), LARGEST)
    off = min(abs(level - memory[3, i]), LARGEST) if code != 0 or memory[4, i] != 0 else 0
    memory[1, i], memory[3, i] = level, off
    return min(((off >> 8) * memory[7, i]) >> 8, LOUDEST)


@compiled
def learn(memory: Ints) -> None:
    """Moves the running means, once a token's components have been remembered."""
    history, last, mean, off = memory[:4]
    for i in range(len(history)):
        history[i] += (off[i] - history[i]) >> SLOW
        mean[i] += (last[i] - mean[i]) >> SLOW
