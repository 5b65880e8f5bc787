"""One thing is not things."""

from __future__ import annotations

from kvtool.counts import counted


def test_numbers_and_their_words() -> None:
    assert [counted(n, "token") for n in (0, 1, 2, 1024)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "1,024 tokens",
    ]
    assert [counted(n, "was there", "were there") for n in (1, 2)] == ["1 was there", "2 were there"]
