"""Break-even by hand: what is spent once, what each use saves, and the length from which it does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.breakeven.sums import Costs, Threshold, threshold, uses_to_break_even

KLT = Costs(tokens=1024, nbytes=512_000, prefill=4.0, write=0.5, encode=1.5, transfer=0.75, load=0.25)


def test_once_and_for_each_use() -> None:
    assert KLT.make == 6.0
    assert KLT.saving == 3.0
    # Two uses save 6 seconds, which is what was spent.
    assert KLT.uses == 2


def test_a_slow_link_makes_a_cache_never_pay() -> None:
    slow = Costs(tokens=1024, nbytes=47_000_000, prefill=4.0, write=0.5, encode=0.0, transfer=3.9, load=0.25)
    assert slow.saving == pytest.approx(-0.15)
    assert slow.uses is None


@pytest.mark.parametrize(
    ("cost", "saving", "uses"),
    [
        (6.0, 3.0, 2),  # exactly
        (6.1, 3.0, 3),
        (0.5, 3.0, 1),
        (0.0, 3.0, 0),  # nothing was spent
        (1.1 * 3, 1.1, 3),  # a quotient just above 3
        (0.3, 0.1, 3),  # and just below
        (6.0, 0.0, None),
        (6.0, -1.0, None),
        (0.0, 0.0, None),
        (1e300, 1e-300, None),  # more uses than can be counted
    ],
)
def test_uses(cost: float, saving: float, uses: int | None) -> None:
    assert uses_to_break_even(cost, saving) == uses


@given(st.floats(1e-3, 1e4), st.floats(1e-3, 1e4))
def test_the_last_use_is_the_one_that_pays(cost: float, saving: float) -> None:
    uses = uses_to_break_even(cost, saving)
    assert uses is not None
    assert uses * saving >= cost * (1 - 1e-6)
    assert (uses - 1) * saving < cost


@pytest.mark.parametrize(
    ("savings", "expected"),
    [
        # Halfway between -1 and 1, and a quarter of the way from -1 to 3, in any order.
        ([(256, -1.0), (1024, 1.0)], Threshold(640, 1024)),
        ([(1024, 3.0), (256, -1.0)], Threshold(448, 1024)),
        # Zero at 256: every token more saves.
        ([(256, 0.0), (1024, 1.0)], Threshold(256, 1024)),
        ([(256, 0.1), (1024, 1.0)], Threshold(256, 1024, at_most=True)),
        ([(256, -2.0), (1024, -1.0)], Threshold(None, 1024)),
        ([(256, -1.0), (1024, 0.0)], Threshold(None, 1024)),
        # What saves in between and no longer at the end does not save from there on.
        ([(256, 1.0), (1024, -1.0)], Threshold(None, 1024)),
        ([(256, 1.0), (1024, -1.0), (4096, 1.0)], Threshold(2560, 4096)),
        ([(512, 1.0)], Threshold(512, 512, at_most=True)),
        ([(512, -1.0)], Threshold(None, 512)),
    ],
)
def test_the_length_from_which_a_use_saves_time(
    savings: list[tuple[int, float]], expected: Threshold
) -> None:
    assert threshold(savings) == expected


def test_what_was_not_measured_is_not_claimed() -> None:
    assert Threshold(640, 4096).describe() == "saves time from about 640 tokens on"
    assert (
        Threshold(256, 4096, at_most=True)
        .describe()
        .startswith("saves time at 256 tokens already, the fewest")
    )
    assert Threshold(None, 4096).describe() == "saves no time at 4,096 tokens, the most that were measured"


@given(st.dictionaries(st.integers(64, 10**5), st.floats(-100, 100), min_size=1))
def test_it_lies_within_what_was_measured(savings: dict[int, float]) -> None:
    found = threshold(list(savings.items()))
    if found.tokens is None:
        assert savings[max(savings)] <= 0
    else:
        assert min(savings) <= found.tokens <= max(savings)
        assert all(saving > 0 for tokens, saving in savings.items() if tokens > found.tokens)
