"""The sums: what a cache costs once, what each use saves, after how many uses it has paid, and from which length on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Costs:
    """What the cache of a text of ``tokens`` tokens takes, in bytes and in seconds of one machine.

    Once: the model runs over the text (``prefill``), the raw cache is written (``write``), and then encoded (``encode``, 0 for
    the raw cache itself). For each use: the file comes over a link (``transfer``, 0 where it lies on the machine) and is
    decoded into a cache that the model can read (``load``). Without a cache, each use takes ``prefill``.
    """

    tokens: int
    nbytes: int
    prefill: float
    write: float
    encode: float
    transfer: float
    load: float

    @property
    def make(self) -> float:
        """Seconds to make the cache, once."""
        return self.prefill + self.write + self.encode

    @property
    def saving(self) -> float:
        """Seconds that each use saves; below 0 where it takes longer than prefilling again."""
        return self.prefill - (self.transfer + self.load)

    @property
    def uses(self) -> int | None:
        """Uses after which the cache has saved what it took to make; None for never."""
        return uses_to_break_even(self.make, self.saving)


def uses_to_break_even(cost: float, saving: float) -> int | None:
    """The fewest uses that save ``cost``, at ``saving`` each; None where no number of them does."""
    if saving <= 0:
        return None
    ratio = cost / saving
    # A quotient such as 3.0000000000000004 is three uses.
    return math.ceil(round(ratio, 9)) if math.isfinite(ratio) else None


@dataclass(frozen=True)
class Threshold:
    """The length in ``tokens`` from which each use saves time.

    ``tokens`` is None where the longest text that was measured, of ``longest`` tokens, saves nothing. ``at_most``: the
    shortest one saves time already, so that the true length is that or less.
    """

    tokens: int | None
    longest: int
    at_most: bool = False

    def describe(self) -> str:
        """The length as the end of a sentence."""
        if self.tokens is None:
            return f"saves no time at {self.longest:,} tokens, the most that were measured"
        if self.at_most:
            return f"saves time at {self.tokens:,} tokens already, the fewest that were measured"
        return f"saves time from about {self.tokens:,} tokens on"


def threshold(savings: Sequence[tuple[int, float]]) -> Threshold:
    """Where the saving becomes positive and stays so, by a straight line between the two lengths that it lies between.

    ``savings`` are of one variant: tokens, and seconds that a use saves; at least one, in any order.
    """
    points = sorted(savings)
    longest, last = points[-1]
    if last <= 0:
        return Threshold(None, longest)
    for (tokens, saving), (more, later) in reversed(list(pairwise(points))):
        if saving <= 0:
            share = -saving / (later - saving)
            return Threshold(math.ceil(tokens + share * (more - tokens)), longest)
    return Threshold(points[0][0], longest, at_most=True)
