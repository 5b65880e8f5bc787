"""The rate of a link, as people write it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.breakeven.link import parse_link
from kvtool.errors import UsageError

UNITS = {"kbit": 125, "Mbit": 125_000, "Gbit": 125_000_000, "kB": 1000, "MB": 10**6, "GB": 10**9}


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("100Mbit", 12.5e6),
        ("1Gbit", 125e6),
        ("50MB", 50e6),
        ("50 MB/s", 50e6),
        ("2.5Gbit/s", 312.5e6),
        ("56kbit", 7000),
        ("100mbit", 12.5e6),
        ("100MBit", 12.5e6),
        ("10MBps", 10e6),
        (" 1GB ", 1e9),
    ],
)
def test_rates(text: str, bytes_per_second: float) -> None:
    link = parse_link(text)
    assert link.bytes_per_second == bytes_per_second
    assert link.rate == text.strip()
    assert link.seconds(int(3 * bytes_per_second)) == 3


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "/s", "ps"]))
def test_every_number_with_every_unit(number: int, unit: str, per: str) -> None:
    assert parse_link(f"{number}{unit}{per}").bytes_per_second == pytest.approx(number * UNITS[unit])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "100",
        "Mbit",
        "0Mbit",
        "-1Mbit",
        "100Mb",
        "100Mbps",
        "1e3Mbit",
        "100MiB",
        "1,5Gbit",
        "nanMB",
        "٣MB",
    ],
)
def test_others_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected a number above 0 with kbit, Mbit, Gbit .* as in 100Mbit or 50MB"
    ):
        parse_link(text)


@given(st.text())
def test_any_text_is_a_rate_or_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_link(text).bytes_per_second > 0
