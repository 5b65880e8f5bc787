"""Sizes and spans of time, as people write them."""

from __future__ import annotations

import pytest

from kvtool.errors import UsageError
from kvtool.units import parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("17", 17),
        ("500MB", 500_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2gib", 2 << 30),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_bytes(text, "--max-size") == nbytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43_200), ("1.5d", 129_600), ("2w", 1_209_600)]
)
def test_spans(text: str, seconds: float) -> None:
    assert parse_duration(text, "--max-age") == seconds


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1XB", "1e3", "nan", "1.GB", "५GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--max-size"):
        parse_bytes(text, "--max-size")


@pytest.mark.parametrize("text", ["", "d", "30", "-1d", "1y", "inf d"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(UsageError, match="--max-age"):
        parse_duration(text, "--max-age")
