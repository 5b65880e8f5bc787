"""Which components of a vector have how many bits, as a calibration says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.errors import unexpected

if TYPE_CHECKING:
    from kvtool.codecs.spec import Json

WHOLE = 16
"""Bits of a value that is kept as it is, in float16; no scale and no zero go with it."""
BITS = (*range(1, 9), WHOLE)
AT_MOST = 1 << 24


@dataclass(frozen=True)
class Run:
    """``blocks`` neighbouring blocks of ``size`` components each, ``bits`` for each value.

    A token's values in a block share a scale and a zero of 16 bits each, unless they are ``WHOLE``.
    """

    blocks: int
    size: int
    bits: int

    @property
    def channels(self) -> int:
        return self.blocks * self.size


def runs_of(calibration: Calibration, name: str, ratio: int) -> tuple[Run, ...]:
    """The components that are kept at a nominal ``ratio``, from the first on.

    ``facts`` has them at blocks, name, ratio: a list of [blocks, size, bits]. Raises CodecError, naming the
    calibration and the field, if it has not, or anything else there.
    """
    rows = calibration.fact("blocks", name, str(ratio))
    if not isinstance(rows, list) or not all(map(_is_run, rows)):
        field = f"{calibration.label}: blocks of {name} at {ratio}"
        raise unexpected(field, rows, "lists of blocks, size and bits")
    return tuple(Run(blocks, size, bits) for blocks, size, bits in rows)


def rank_of(calibration: Calibration, name: str) -> int:
    """The number of components that the calibration has; the largest ratio's may be fewer."""
    rank = calibration.fact("rank", name)
    if type(rank) is not int or not 0 <= rank <= AT_MOST:
        raise unexpected(f"{calibration.label}: rank of {name}", rank, "an integer from 0")
    return rank


def _is_run(row: Json) -> bool:
    if not isinstance(row, list) or len(row) != 3 or not all(type(value) is int for value in row):
        return False
    blocks, size, bits = row
    return 0 < blocks <= AT_MOST and 0 < size <= AT_MOST and bits in BITS
