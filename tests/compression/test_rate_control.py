"""The dial of a recipe: targets for it, and the settings that meet them."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from kvtool.calibration.search import CLOSE, TRIES, Setting, search
from kvtool.codecs import Calibration, Parameter
from kvtool.codecs.recipe import PRESETS, Between, Dial, MeasuredPreset, Preset
from kvtool.compression.rate_control import likely_setting
from kvtool.compression.target import Target, split_target
from kvtool.errors import UsageError


@pytest.mark.parametrize("limit", [0.003, 0.05, 1.0, 40.0])
@pytest.mark.parametrize("slope", [0.5, 1.0, 2.5])
def test_a_falling_measure_is_met_from_below(limit: float, slope: float) -> None:
    tried: list[float] = []

    def bits(step: float) -> float:
        tried.append(step)
        return float(0.02 * step**-slope)

    found = search(bits, limit, start=0.04, between=(1e-9, 1e4), rising=False)
    assert found.met
    assert (1 - CLOSE) * limit <= found.measured <= limit
    assert found.measured == bits(found.value)
    assert len(tried) <= TRIES + 1


@pytest.mark.parametrize("limit", [0.002, 0.02, 0.3])
def test_a_rising_measure_with_a_bend_is_met_from_below(limit: float) -> None:
    def kl(step: float) -> float:
        return 0.001 + 9 * step**2 + (0.05 if step > 0.15 else 0)

    found = search(kl, limit, start=0.04, between=(1e-4, 10), rising=True)
    assert found.met
    assert 0.9 * limit <= found.measured <= limit


def test_what_cannot_be_met_gives_the_nearest() -> None:
    found = search(lambda step: 0.01 + step, 0.005, start=0.04, between=(1e-3, 10), rising=True)
    assert found == Setting("", 1e-3, pytest.approx(0.011), met=False)
    smallest = search(lambda step: 0.1 + 1 / step, 0.05, start=0.04, between=(1e-3, 10), rising=False)
    assert (smallest.value, smallest.met) == (10, False)


def test_a_measure_that_always_meets_ends_at_the_far_side() -> None:
    found = search(lambda _: 0.001, 0.5, start=0.04, between=(1e-3, 10), rising=True)
    assert (found.value, found.met) == (10, True)


def test_the_search_begins_where_presets_point_to() -> None:
    dial = Dial(
        "step", {name: Preset(0.01, 0.5, 0.1) for name in ("fine", "middle", "coarse")}, default="middle"
    )
    parameter = Parameter(0.075, Between(1e-3, 1.0), "")

    def holding(**settings: float) -> Calibration:
        measured = {
            name: asdict(MeasuredPreset(step, True, 5 * step**2, 0.02 / step, None, 100, 0))
            for name, step in settings.items()
        }
        return Calibration("klt", {PRESETS: measured}, {})

    known = holding(fine=0.01, middle=0.05, coarse=0.2)
    for target, expected in ((("bits", 0.5), 0.04), (("ratio", 320.0), 0.4), (("max_kl", 0.0002), 0.00632)):
        assert likely_setting(Target(*target), dial, [known], parameter) == pytest.approx(expected, rel=0.01)
    assert likely_setting(Target("bits", 1e-4), dial, [known], parameter) == 1.0
    for unknown in ([], [holding()], [holding(fine=0.01)]):
        assert likely_setting(Target("bits", 0.5), dial, unknown, parameter) == 0.075


def test_settings_that_are_known_save_tries() -> None:
    tried: list[float] = []

    def kl(step: float) -> float:
        tried.append(step)
        return 9 * step**2

    known = {step: 9 * step**2 for step in (0.01, 0.05, 0.2)}
    found = search(
        lambda s: known[s] if s in known else kl(s),
        0.1,
        start=1,
        between=(1e-3, 10),
        rising=True,
        known=known,
    )
    assert found.met
    assert 0.098 <= found.measured <= 0.1
    assert len(tried) <= 2


def test_targets_in_their_own_units() -> None:
    assert Target("ratio", 32).limit == 0.5
    assert Target("ratio", 32).describe(0.25) == "ratio 64.0"
    assert Target("bits", 0.5).describe(0.4567) == "0.457 bits per value"
    assert Target("max_kl", 0.02).describe(0.0123) == "KL 0.0123"
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match=r"--max-kl .*expected a number above 0"):
            Target("max_kl", value)


def test_what_is_asked_of_a_recipe() -> None:
    assert split_target("klt", {"ratio": 30}) == (Target("ratio", 30.0), None, {})
    assert split_target("klt", {"step": 0.1}) == (None, None, {"step": 0.1})
    assert split_target("klt", {"preset": "small"}) == (None, "small", {})
    # Where nothing is said about the dial, its default preset decides.
    assert split_target("klt", {"power": 0.1}) == (None, "balanced", {"power": 0.1})
    # Where a recipe has a parameter so called, that is meant.
    assert split_target("kivi", {"bits": 4}) == (None, None, {"bits": 4})
    assert split_target("kvtc", {"ratio": 16}) == (None, None, {"ratio": 16})


@pytest.mark.parametrize(
    ("recipe", "parameters", "message"),
    [
        ("kivi", {"ratio": 10}, "--ratio: recipe 'kivi' has no dial to turn; its parameters are: bits"),
        ("klt", {"ratio": 10, "max_kl": 0.1}, "--ratio and --max-kl: say the same thing .* give one"),
        ("klt", {"bits": 1, "step": 0.1}, "--bits and step: say the same thing"),
        ("klt", {"preset": "tiny"}, "--preset tiny: expected one of near-lossless, balanced, small"),
        ("klt", {"ratio": "much"}, "--ratio much: expected a number"),
        ("nothing", {"ratio": 3}, "no recipe is called 'nothing'"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    recipe: str, parameters: dict[str, float | str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        split_target(recipe, parameters)
