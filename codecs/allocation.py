"""Which components of a vector have how many bits, as a calibration says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.errors import CodecError

if TYPE_CHECKING:
    from kvtool.codecs.stage import Json

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


def entry(first: int, side: str) -> str:
    """What a calibration calls the keys or the values of the group of layers that starts at ``first``."""
    return f"{first:04d}.{side}"


def runs_of(calibration: Calibration, name: str, ratio: int) -> tuple[Run, ...]:
    """The components that are kept at a nominal ``ratio``, from the first on.

    ``facts`` has them at blocks, name, ratio: a list of [blocks, size, bits]. Raises CodecError, naming the
    calibration and the field, if it has not, or anything else there.
    """
    rows = _fact(calibration, "blocks", name, str(ratio))
    if not isinstance(rows, list) or not all(map(_is_run, rows)):
        where = f"blocks of {name} at {ratio}"
        raise CodecError(
            f"{_named(calibration)}: {where} are {str(rows)[:80]}, expected lists of blocks, size and bits"
        )
    return tuple(Run(blocks, size, bits) for blocks, size, bits in rows)


def rank_of(calibration: Calibration, name: str) -> int:
    """The number of components that the calibration has; the largest ratio's may be fewer."""
    rank = _fact(calibration, "rank", name)
    if type(rank) is not int or not 0 <= rank <= AT_MOST:
        raise CodecError(
            f"{_named(calibration)}: rank of {name} is {str(rank)[:80]}, expected an integer from 0"
        )
    return rank


def _is_run(row: Json) -> bool:
    if not isinstance(row, list) or len(row) != 3 or not all(type(value) is int for value in row):
        return False
    blocks, size, bits = row
    return 0 < blocks <= AT_MOST and 0 < size <= AT_MOST and bits in BITS


def _fact(calibration: Calibration, *path: str) -> Json:
    found: Json = calibration.facts
    for depth, key in enumerate(path, 1):
        if not isinstance(found, dict) or key not in found:
            raise CodecError(
                f"{_named(calibration)}: has no {' '.join(path[:depth])}, expected one for each group of layers: it was made "
                "of caches of other sizes, or for other ratios"
            )
        found = found[key]
    return found


def _named(calibration: Calibration) -> str:
    return f"calibration {calibration.digest[:12]}… ({calibration.method})"
