"""The frontier: nobody on it is dominated, whoever is off it is dominated by a member, in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtool.recommendation.frontier import Measure, Point, dominator, frontier

# Few values, so that many are equal.
values = st.integers(0, 4).map(float)
measures = st.builds(
    lambda value, width: Measure(value, value - width), values, st.sampled_from([0.0, 0.5, 2.0])
)
points = st.lists(st.tuples(measures, measures, measures), max_size=9).map(
    lambda drawn: [Point(str(n), each) for n, each in enumerate(drawn)]
)


@given(points)
def test_no_member_is_dominated_and_everyone_else_is_by_a_member(drawn: list[Point]) -> None:
    members = frontier(drawn)
    for point in drawn:
        by = dominator(point, members)
        assert (by is None) == (point in members)
        assert by is None or by.dominates(point)
    assert bool(members) == bool(drawn)


@given(points, st.randoms())
def test_the_order_does_not_matter(drawn: list[Point], random: object) -> None:
    shuffled = list(drawn)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {point.name for point in frontier(shuffled)} == {point.name for point in frontier(drawn)}


def point(name: str, bits: float, kl: float, low: float) -> Point:
    return Point(name, (Measure.counted(bits), Measure(kl, low)))


def test_what_may_be_chance_takes_nobody_off() -> None:
    good, noisy, bad = (
        point("good", 4, 0.01, 0.005),
        point("noisy", 4, 0.02, 0.008),
        point("bad", 4, 0.5, 0.4),
    )
    assert frontier([good, noisy, bad]) == [good, noisy]
    assert dominator(bad, [good, noisy]) == good


def test_fewer_bytes_count_without_an_interval() -> None:
    assert frontier([point("large", 5, 0.01, 0.0), point("small", 4, 0.01, 0.0)]) == [
        point("small", 4, 0.01, 0.0)
    ]
    # Larger, and better by chance at most: both stay.
    assert len(frontier([point("large", 5, 0.009, 0.0), point("small", 4, 0.01, 0.0)])) == 2
