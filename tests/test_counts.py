"""One thing is not things, and shares are written in two ways."""

from __future__ import annotations

import math

import pytest

from kvtool.counts import counted, parse_share


def test_numbers_and_their_words() -> None:
    assert [counted(n, "token") for n in (0, 1, 2, 1024)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "1,024 tokens",
    ]
    assert [counted(n, "was there", "were there") for n in (1, 2)] == ["1 was there", "2 were there"]


@pytest.mark.parametrize(("text", "share"), [("25%", 0.25), ("0.25", 0.25), ("100%", 1.0), ("1", 1.0)])
def test_a_share(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize(
    "text", ["0", "0%", "101%", "1.5", "-5%", "nan", "inf%", "%", "", "a quarter", "5 %%"]
)
def test_what_is_no_share(text: str) -> None:
    assert math.isnan(parse_share(text))
