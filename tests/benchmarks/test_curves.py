"""Interpolation between measured settings, bytes at equal KL, totals of a store."""

from __future__ import annotations

import math

import pytest

from benchmarks.pages.curves import NOT_REACHED, Point, Reached, ratio_at, ratio_keeping, shares, total

# KL = ratio² / 1e5: a straight line where both axes are logarithmic.
CURVE = [Point(f"step={ratio}", ratio, ratio**2 / 1e5) for ratio in (80.0, 10.0, 20.0)]


@pytest.mark.parametrize("ratio", [10.5, 15, 20, 50, 79.9])
def test_a_straight_line_is_met_between_its_points(ratio: float) -> None:
    found = ratio_at(CURVE, ratio**2 / 1e5)
    assert found is not None
    assert found.ratio == pytest.approx(ratio)
    assert not found.least


def test_nothing_is_said_beyond_the_points() -> None:
    assert ratio_at(CURVE, 9.99**2 / 1e5) is None
    assert ratio_at(CURVE, 1.0) == Reached(80, least=True)
    assert str(ratio_at(CURVE, 1.0)) == "≥ 80.0×"
    assert ratio_at([], 1.0) is None


def test_one_point_is_a_curve_of_one_point() -> None:
    alone = [Point("alone", 6.5, 0.048)]
    assert ratio_at(alone, 0.06) == Reached(6.5, least=True)
    assert ratio_at(alone, 0.048) == Reached(6.5, least=True)
    assert ratio_at(alone, 0.02) is None


def test_the_last_crossing_counts_where_kl_falls_again() -> None:
    wavy = [Point("a", 10, 0.01), Point("b", 20, 0.1), Point("c", 30, 0.02), Point("d", 40, 0.2)]
    found = ratio_at(wavy, 0.05)
    assert found is not None
    assert 30 < found.ratio < 40


def test_what_loses_nothing_is_not_interpolated_from() -> None:
    assert ratio_at([Point("lossless", 1.4, 0.0), Point("lossy", 5, 0.1)], 0.01) == Reached(1.4, least=True)


def test_bytes_at_equal_kl() -> None:
    others = [Point("within", 4, 40.0**2 / 1e5), Point("worse", 2, 3.0), Point("better", 1.5, 1e-5)]
    within, worse, better = shares(CURVE, others)
    assert within.bytes == pytest.approx(4 / 40)
    assert str(within) == "0.100"
    assert (worse.bytes, str(worse)) == (2 / 80, "≤ 0.025")
    assert (better.bytes, str(better)) == (None, NOT_REACHED)


def test_a_ratio_keeps_only_if_all_smaller_ones_do() -> None:
    points = [(70.0, 0.01), (10.0, 0.0), (35.0, -0.01), (50.0, 0.05)]
    assert ratio_keeping(points, 0.02) == 35
    assert ratio_keeping(points, 0.1) == 70
    assert ratio_keeping([(10.0, 0.3)], 0.02) is None


def test_a_calibration_weighs_less_the_larger_the_store() -> None:
    totals = [total(tokens, 300.0, 3_000_000, 11_520) for tokens in (10_000, 1_000_000)]
    assert [t.nbytes for t in totals] == [6_000_000, 303_000_000]
    assert totals[0].ratio == pytest.approx(11_520 * 2 * 10_000 / 6_000_000)
    assert math.isclose(totals[1].ratio, 76.04, abs_tol=0.01)
