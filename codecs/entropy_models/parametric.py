"""A bell curve for each row: two bytes say where it stands and how wide it is."""

from __future__ import annotations

import numpy as np

from kvtool.codecs.entropy_models.model import Ints, Tables, cost, precision, shares
from kvtool.codecs.entropy_models.shapes import ONE, SCALES, STEPS, WIDTH, inverse_scales, shapes
from kvtool.codecs.errors import CodecError
from kvtool.kernels.cpu.jit import compiled


class Parametric:
    """A normal, logistic or Laplace distribution for each row, cut into levels.

    Side bytes: each row's mean, then each row's ``shape * SCALES + scale``.
    """

    def fit(self, counts: Ints, tokens: int) -> bytes:
        """By moments, then by trying the neighbours."""
        levels = counts.shape[1]
        n, code = np.maximum(counts.sum(1), 1), np.arange(levels)
        mean = (counts * code).sum(1) / n
        spread = np.sqrt(np.maximum((counts * (code - mean[:, None]) ** 2).sum(1) / n, 1e-3))
        moments = np.zeros(len(n)), mean * STEPS / _mean_unit(levels), (np.log2(spread) + 4) * 6
        first = np.round(np.stack(moments)).astype(np.int64)
        best, bits = first, np.full(len(n), np.inf)
        # Widths first, for every shape: far from a bell, a curve fits better if it is narrower than its moments.
        moves = [(shape, 0, scale) for shape in range(3) for scale in range(-8, 4, 2)]
        fine = [(0, m, s) for s in (-1, 0, 1) for m in (-2, -1, 0, 1, 2) if m or s]
        for around, steps in ((first, moves), (None, fine)):
            centre = best if around is None else around
            for move in steps:
                tried = _clipped(centre + np.array(move)[:, None])
                tried_bits = cost(counts, _shares(tried, levels))
                best = np.where(tried_bits < bits, tried, best)
                bits = np.minimum(tried_bits, bits)
        shape, mean_code, scale = best
        return bytes(np.stack([mean_code, shape * SCALES + scale]).astype(np.uint8))

    def nbytes(self, rows: int, levels: int, tokens: int) -> int:
        return 2 * rows

    def tables(self, side: bytes, rows: int, levels: int, tokens: int) -> Tables:
        if len(side) != 2 * rows:
            raise CodecError(f"parameters of {len(side)} bytes, expected {2 * rows}")
        mean, rest = np.frombuffer(side, np.uint8).astype(np.int64).reshape(2, rows)
        parameters = np.stack([rest // SCALES, mean, rest % SCALES])
        return Tables(_shares(_clipped(parameters), levels), np.arange(rows))


def _mean_unit(levels: int) -> int:
    """The unit of a stored mean, in steps: an eighth of a level, or more where a byte would not reach."""
    return max(STEPS // 8, levels * STEPS // 256)


def _clipped(parameters: Ints) -> Ints:
    return parameters.clip(0, np.array([[2], [255], [SCALES - 1]]))


def _shares(parameters: Ints, levels: int) -> Ints:
    reached = _reached(parameters, _mean_unit(levels), levels, shapes(), inverse_scales())
    return shares(reached, 1 << precision(levels))


@compiled
def _reached(parameters: Ints, unit: int, levels: int, curves: Ints, inverse: Ints) -> Ints:
    """The probability of each level [rows, levels], in units of ``ONE``; the outermost have the tails."""
    shape, mean, scale = parameters
    probabilities = np.empty((len(shape), levels), np.int64)
    for row in range(len(shape)):
        before = 0
        for s in range(levels):
            edge = (s + 1) * STEPS - STEPS // 2 - mean[row] * unit
            where = (edge * inverse[scale[row]]) >> 16
            where = min(max(where, -WIDTH * STEPS), WIDTH * STEPS) + WIDTH * STEPS
            reached = ONE if s == levels - 1 else curves[shape[row], where]
            probabilities[row, s] = reached - before
            before = reached
    return probabilities
