"""Numbers of things, in words, and shares of them."""

from __future__ import annotations

import math


def counted(number: int, one: str, several: str = "") -> str:
    """The number and the word for so many, ``one`` with an s by default: "1 document", "1,024 tokens"."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {several or one + 's'}"


def parse_share(text: str) -> float:
    """A share above 0, up to 1, written as 25% or 0.25; NaN for anything else."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return math.nan
    return share if 0 < share <= 1 else math.nan
