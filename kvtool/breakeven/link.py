"""The rate of a link, as it is written on a command line: 100Mbit, 1Gbit/s, 50MB."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kvtool.errors import UsageError

BYTES = {
    unit + size: power * factor
    for unit, power in (("k", 1e3), ("m", 1e6), ("g", 1e9))
    for size, factor in (("bit", 1 / 8), ("b", 1.0))
}
"""Bytes per second of a unit, in small letters: kbit and kb to gbit and gb."""

WRITTEN = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+?)(?:/s|ps)?", re.ASCII)


@dataclass(frozen=True)
class Link:
    """A link over which ``bytes_per_second`` arrive; ``rate`` is how that was written."""

    rate: str
    bytes_per_second: float

    def seconds(self, nbytes: int) -> float:
        return nbytes / self.bytes_per_second


def parse_link(text: str) -> Link:
    """Reads a number and kbit, Mbit, Gbit, kB, MB or GB, with or without "/s". Raises ``UsageError`` for anything else.

    Mb is refused: some mean bits by it, and others bytes.
    """
    match = WRITTEN.fullmatch(text.strip())
    unit = match[2] if match else ""
    if match and unit.lower() in BYTES and not unit.endswith("b"):
        rate = float(match[1]) * BYTES[unit.lower()]
        if 0 < rate < math.inf:
            return Link(text.strip(), rate)
    reason = "is no rate of a link"
    remedy = "expected a number above 0 with kbit, Mbit, Gbit (bits) or kB, MB, GB (bytes) a second, as in 100Mbit or 50MB"
    raise UsageError(f"--link {text}", reason, remedy)
