"""Intervals that hold what they should, as often as they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.measurement.statistics import mean, ratio

clusters = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), min_size=1, max_size=8)


@given(clusters)
def test_the_value_is_the_mean_of_all_pieces(values: list[list[float]]) -> None:
    estimate = mean(values)
    assert estimate is not None
    everything = [x for cluster in values for x in cluster]
    assert estimate.value == pytest.approx(np.mean(everything), abs=1e-9)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.n == len(values)


@given(clusters)
def test_the_same_pieces_give_the_same_interval(values: list[list[float]]) -> None:
    assert mean(values) == mean(values)


def test_no_pieces_no_mean() -> None:
    assert mean([]) is None
    assert mean([[], []]) is None
    assert ratio([[(0.0, 0.0)]]) is None


def test_a_constant_has_no_width() -> None:
    estimate = mean([[0.25] * 40] * 5)
    assert estimate is not None
    assert (estimate.low, estimate.high) == (0.25, 0.25)


def test_a_share_of_everything_is_as_sure_as_there_are_pieces() -> None:
    few, many = mean([[1.0] * 3], share=True), mean([[1.0] * 300], share=True)
    assert few is not None
    assert many is not None
    assert few.low == pytest.approx(0.05 ** (1 / 3))
    assert many.low > 0.99
    assert few.high == many.high == 1.0
    none = mean([[0.0] * 10], share=True)
    assert none is not None
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.05**0.1))  # type: ignore[comparison-overlap]


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        # Clusters differ among themselves, as documents do: pieces alone would give intervals far too narrow.
        documents = random.normal(0, 1, 20)
        estimate = mean([list(random.normal(m, 1, 16)) for m in documents])
        assert estimate is not None
        held += estimate.low <= 0 <= estimate.high
    assert 0.88 <= held / 200 <= 0.99


def test_neighbouring_pieces_that_agree_count_as_few() -> None:
    random = np.random.default_rng(2)
    run = np.repeat(random.normal(0, 1, 16), 32)
    together, apart = mean([list(run)], block=32), mean([list(run)])
    assert together is not None
    assert apart is not None
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_a_ratio_is_of_sums() -> None:
    estimate = ratio([[(1.0, 2.0), (0.0, 1.0)], [(3.0, 3.0)]])
    assert estimate is not None
    assert estimate.value == pytest.approx(4 / 6)


def test_a_difference_of_nothing_cannot_be_told() -> None:
    few = mean([[0.0] * 10] * 5 + [[-1.0] + [0.0] * 9])
    many = mean([[-1.0] * 3 + [0.0] * 7] * 6)
    assert few is not None
    assert many is not None
    assert few.high == 0
    assert many.high < 0
