"""How many tokens to keep, and how finely to code them: settings that meet a size, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kvtool.calibration.held_back import Quality
from kvtool.calibration.search import CLOSE, TRIES
from kvtool.codecs.recipe_registry import recipe
from kvtool.compression.joint.choice import Candidate, choose
from kvtool.compression.joint.settings import KEEPS, Finder, Parameters
from kvtool.compression.joint.space import BITS, FINER, Space, Wanted
from kvtool.compression.request import make_request
from kvtool.compression.target import Target, split_resident, split_target
from kvtool.errors import UsageError

HEADER = 0.02
"""Bits per value that are stored whatever is kept."""


def coded(setting: Parameters) -> float:
    """Bits per value where what stays is coded alone, in 4 bits where nothing is said."""
    return HEADER + setting.get("keep", 1.0) * (setting.get("bits", 4) + 1)


def coded_whole(setting: Parameters) -> float:
    """Bits per value where all tokens are coded, whatever is kept."""
    return HEADER + 0.001 * setting["keep"] + 0.02 / setting["step"]


def resident(setting: Parameters) -> float:
    """Places take memory beside the tokens."""
    return min(1.0, 1.01 * setting["keep"])


def finder(
    name: str,
    wanted: Wanted,
    bits: Callable[[Parameters], float] = coded,
    parameters: Mapping[str, Any] | None = None,
) -> Finder:
    return Finder(Space.of(recipe(name), parameters or {}), wanted, bits, resident)


# Settings


@pytest.mark.parametrize("ratio", [8, 30, 100])
def test_of_each_number_of_bits_as_many_tokens_stay_as_the_size_allows(ratio: float) -> None:
    found = finder("kvzip+kivi", Wanted(Target("ratio", ratio))).candidates()
    assert [c.parameters["bits"] for c in found] == list(BITS)
    keeps = [c.parameters["keep"] for c in found]
    assert keeps == sorted(keeps)
    for candidate in found:
        assert candidate.bits == coded(candidate.parameters)
        assert (1 - CLOSE) * 16 / ratio <= candidate.bits <= 16 / ratio
        assert candidate.resident == resident(candidate.parameters)


def test_fewer_bits_are_not_tried_where_they_keep_no_more() -> None:
    found = finder("kvzip+kivi", Wanted(Target("ratio", 3.9))).candidates()
    # In 3 bits all tokens have room.
    assert [c.parameters["bits"] for c in found] == [8, 6, 4, 3]
    assert found[-1].parameters["keep"] == 1


def test_of_each_share_the_finest_setting_of_a_dial() -> None:
    tried: list[Parameters] = []

    def bits(setting: Parameters) -> float:
        tried.append(setting)
        return coded_whole(setting)

    found = finder("kvzip+klt", Wanted(Target("bits", 0.4)), bits).candidates()
    assert [c.parameters["keep"] for c in found] == list(KEEPS)
    assert all((1 - CLOSE) * 0.4 <= c.bits <= 0.4 for c in found)
    # All tokens are coded, so that one search serves every share.
    assert len(tried) <= TRIES + 2 * len(KEEPS)


def test_memory_alone_leaves_the_coding_open() -> None:
    found = finder("kvzip+kivi", Wanted(resident=0.25)).candidates()
    assert [c.parameters["bits"] for c in found] == list(BITS)
    assert len({c.parameters["keep"] for c in found}) == 1
    assert (1 - CLOSE) * 0.25 <= found[0].resident <= 0.25
    steps = [
        c.parameters["step"] for c in finder("kvzip+klt", Wanted(resident=0.25), coded_whole).candidates()
    ]
    assert steps == [0.075 / finer for finer in FINER]


def test_memory_bounds_what_a_stored_size_would_allow() -> None:
    both = Wanted(Target("ratio", 8), 0.3)
    found = finder("kvzip+kivi", both).candidates()
    assert all(c.resident <= 0.3 and c.bits <= 2 for c in found)
    # With room for the share in 4 bits, 3 are not tried.
    assert [c.parameters["bits"] for c in found] == [8, 6, 4]
    found = finder("kvzip+klt", Wanted(Target("bits", 0.4), 0.5), coded_whole).candidates()
    assert found[0].parameters["keep"] == pytest.approx(0.5 / 1.01, rel=CLOSE)
    assert [c.parameters["keep"] for c in found] == sorted(
        (c.parameters["keep"] for c in found), reverse=True
    )


@pytest.mark.parametrize(
    ("name", "parameters", "wanted", "expected"),
    [
        ("kvzip+kivi", {"keep": 0.5}, Wanted(Target("ratio", 8)), {"bits": 2}),
        ("kvzip+kivi", {"bits": 4}, Wanted(Target("ratio", 8)), {"keep": 0.3}),
        ("kvzip+nf4", {}, Wanted(Target("bits", 2)), {"keep": 0.3}),
        ("kvzip", {}, Wanted(resident=0.5), {"keep": 0.5}),
    ],
)
def test_what_is_set_leaves_one_setting(
    name: str, parameters: dict[str, Any], wanted: Wanted, expected: Parameters
) -> None:
    bits = lambda setting: coded({**parameters, **setting})  # noqa: E731
    space = Space.of(recipe(name), parameters)
    share = lambda setting: resident({**parameters, **setting})  # noqa: E731
    (found,) = Finder(space, wanted, bits, share).candidates()
    assert found.parameters.keys() == expected.keys()
    for key, value in expected.items():
        assert found.parameters[key] == pytest.approx(value, rel=0.35)


def test_a_size_just_above_the_smallest_is_met() -> None:
    found = finder("kvzip+kivi", Wanted(Target("bits", 1.2 * HEADER))).candidates()
    assert found
    assert all(HEADER < c.bits <= 1.2 * HEADER for c in found)


def test_what_cannot_be_met_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"--ratio 900: recipe 'kvzip\+kivi' comes no nearer .* ratio 7.*keep=0.001, bits=1"
    ):
        finder("kvzip+kivi", Wanted(Target("ratio", 900))).candidates()
    with pytest.raises(
        UsageError, match=r"--bits 0.02 and --resident 30%: recipe 'kvzip\+klt' .* bits per value, with keep="
    ):
        finder("kvzip+klt", Wanted(Target("bits", 0.02), 0.3), coded_whole).candidates()
    with pytest.raises(
        UsageError, match=r"--resident 10%: .* than 35% of the raw cache's memory, with keep=0.001"
    ):
        Finder(Space.of(recipe("l2-norm"), {}), Wanted(resident=0.1), coded, lambda _: 0.35).candidates()


# The choice


def qualities(*pairs: tuple[float, int]) -> list[Quality]:
    """KL, and how many of 20 facts are found."""
    return [Quality(100 * kl, 100, 1, 1, kept, 20) for kl, kept in pairs]


def test_the_candidate_that_loses_least_is_chosen() -> None:
    candidates = [Candidate({"keep": keep}, 0.5, keep) for keep in (0.5, 0.3, 0.1)]
    assert choose(candidates, qualities((0.2, 20), (0.05, 20), (0.3, 20))).candidate == candidates[1]
    # Facts count beside KL: a lost one of twenty as much as a KL of 0.01.
    assert choose(candidates, qualities((0.05, 20), (0.02, 10), (0.02, 8))).candidate == candidates[0]
    nan = choose(candidates, qualities((math.nan, 20), (0.9, 0), (math.nan, 20)))
    assert nan.candidate == candidates[1]


def test_of_those_that_are_as_good_the_smallest_is_chosen() -> None:
    candidates = [
        Candidate({"keep": keep}, bits, keep)
        for keep, bits in ((0.5, 0.4), (0.3, 0.5), (0.3, 0.3), (0.1, 0.1))
    ]
    choice = choose(candidates, qualities((0.100, 20), (0.105, 20), (0.108, 20), (0.2, 20)))
    assert choice.candidate == candidates[2]
    assert choice.describe() == (
        "keep=0.3: 0.3 bits per value, 30% of the raw cache's memory, KL about 0.11, 20 of 20 facts found; "
        "the best of 4 settings of that size"
    )


# What is asked


def test_a_share_of_memory() -> None:
    assert split_resident("kvzip+klt", {"resident": "25%", "step": 0.1}) == (0.25, {"step": 0.1})
    assert split_resident("kvzip", {"resident": 0.25}) == (0.25, {})
    assert split_resident("klt", {"step": 0.1}) == (None, {"step": 0.1})
    # A size decides what is left open.
    assert split_target("kvzip+klt", {"bits": 0.5}) == (Target("bits", 0.5), None, {})
    assert split_target("kvzip+klt", {"bits": 0.5, "step": 0.1}) == (Target("bits", 0.5), None, {"step": 0.1})
    assert split_target("kvzip+kivi", {"ratio": 30, "bits": 4}) == (Target("ratio", 30), None, {"bits": 4})
    assert split_target("kvzip", {"bits": 3}) == (Target("bits", 3), None, {})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "kivi",
            {"resident": "25%"},
            r"--resident 25%: recipe 'kivi' leaves out no tokens.*--recipe kvzip\+kivi",
        ),
        ("kvzip+kivi", {"resident": "25%", "keep": 0.3}, "--resident and --keep: say the same thing"),
        (
            "kvzip+klt",
            {"resident": "25%", "max_kl": 0.1},
            "--resident and --max-kl: are not searched for together",
        ),
        (
            "kvzip",
            {"resident": "40MB"},
            "--resident 40MB: expected a share of the raw cache's memory, as 25% or 0.25",
        ),
        ("kvzip", {"resident": "0%"}, "--resident 0%: expected a share"),
        ("kvzip", {"resident": 1.5}, r"--resident 1\.5: expected a share"),
        ("kvzip+klt", {"bits": 1, "keep": 0.3, "step": 0.1}, "--bits and keep and step: say the same thing"),
        ("kvzip+nf4", {"bits": 1, "keep": 0.3}, "--bits and keep: say the same thing"),
        (
            "kvzip+kivi",
            {"bits": 0.5},
            r"--bits 0\.5: is the size of a code .* 1 to 8; to ask .* give --ratio 32",
        ),
        ("kvzip+klt", {"preset": "small"}, r"--preset small: recipe 'kvzip\+klt' has no presets"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_request(name, parameters)
