"""A bell curve for each row, and how far the row's counts are from it."""

from __future__ import annotations

import numpy as np
import torch

from kvtool.codecs.entropy_models.model import Floats, Ints, Tables, precision, shares
from kvtool.codecs.entropy_models.parametric import Parametric
from kvtool.codecs.entropy_models.shared import Shared
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.container import byte_tensor
from kvtool.kernels import dispatch

FARTHEST = 15
LEVELS = 2 * FARTHEST + 1
LANES = 4
"""Few, since each costs two bytes and corrections are short."""


class Corrected:
    """``Parametric``, and for each row and level the difference of the square roots of counts, in steps of 2.

    The standard deviation of a count's square root is a half, whatever the count; so a step of 2 costs a
    fraction of a bit for each row, and most differences are 0. They are coded by rANS under one histogram.
    """

    def fit(self, counts: Ints, tokens: int) -> bytes:
        rows, levels = counts.shape
        parameters = Parametric().fit(counts, tokens)
        expected = _expected(parameters, rows, levels, tokens)
        moved = np.floor(np.sqrt(counts) / 2 + 0.5).astype(np.int64) - _root(expected)
        codes = torch.from_numpy((moved.clip(-FARTHEST, FARTHEST) + FARTHEST).astype(np.uint8))
        histogram = Shared().fit(np.bincount(codes.flatten(), minlength=LEVELS)[None], tokens)
        stream = dispatch.rans_encode(codes.reshape(1, -1, 1), *_coder(histogram))
        return parameters + histogram + bytes(stream.numpy())

    def nbytes(self, rows: int, levels: int, tokens: int) -> int:
        return 2 * rows + LEVELS + 4 * LANES + 2 * rows * levels

    def tables(self, side: bytes, rows: int, levels: int, tokens: int) -> Tables:
        parameters, rest = side[: 2 * rows], side[2 * rows :]
        histogram, stream = rest[:LEVELS], rest[LEVELS:]
        expected = _expected(parameters, rows, levels, tokens)
        codes = torch.empty((1, rows * levels, 1), dtype=torch.uint8)
        whole = torch.tensor([[0, len(stream), 0, rows * levels]])
        try:
            dispatch.rans_decode(byte_tensor(stream), whole, *_coder(histogram), codes)
        except ValueError as error:
            raise CodecError(f"corrections: {error}") from None
        moved = codes.numpy().reshape(rows, levels).astype(np.int64) - FARTHEST
        root = np.maximum(_root(expected) + moved, 0)
        # Where nothing is left, a little of what was expected: the count has been 0 or 1.
        unseen = 1 + np.minimum(256, np.floor(expected * 1024)).astype(np.int64)
        weights = np.where(root > 0, 4096 * root * root, unseen)
        return Tables(shares(weights, 1 << precision(levels)), np.arange(rows))


def _expected(parameters: bytes, rows: int, levels: int, tokens: int) -> Floats:
    """The counts [rows, levels] that follow from the parameters; exact, since it divides by a power of two."""
    return Parametric().tables(parameters, rows, levels, tokens).shares * tokens / (1 << precision(levels))


def _root(expected: Floats) -> Ints:
    return np.floor(np.sqrt(expected) / 2 + 0.5).astype(np.int64)


def _coder(histogram: bytes) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return *Shared().tables(histogram, 1, LEVELS, 1).tensors(), precision(LEVELS), LANES
