"""Sizes and spans of time, as people write them."""

from __future__ import annotations

import re

from kvtool.errors import UsageError

_BYTES = {"": 1, "B": 1}
_BYTES |= {unit: 1000**n for n, unit in enumerate(("KB", "MB", "GB", "TB"), 1)}
_BYTES |= {unit: 1024**n for n, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), 1)}

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_bytes(text: str, subject: str) -> int:
    """Bytes of a size such as 500MB, 1.5 GB or 2GiB. Raises ``UsageError`` about ``subject`` for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _BYTES:
        raise UsageError(f"{subject} {text}", "is not a size", "expected one such as 500MB, 20GB or 2GiB")
    return round(float(match[1]) * _BYTES[match[2].upper()])


def parse_quota(text: str, subject: str) -> int:
    """Bytes of a size above 0. Raises ``UsageError`` as ``parse_bytes`` does."""
    nbytes = parse_bytes(text, subject)
    if not nbytes:
        raise UsageError(f"{subject} {text}", "leaves room for nothing", "expected a size above 0")
    return nbytes


def parse_duration(text: str, subject: str) -> float:
    """Seconds of a span of time such as 12h or 30d. Raises ``UsageError`` about ``subject`` for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([smhdw])", text.strip())
    if match is None:
        remedy = "expected a number and s, m, h, d or w, such as 12h or 30d"
        raise UsageError(f"{subject} {text}", "is not a span of time", remedy)
    return float(match[1]) * _SECONDS[match[2]]
