"""Choices from evaluations made up by hand: who keeps which promise, why, and the command that makes it."""

from __future__ import annotations

from typing import Any

import pytest

from kvtool.recommendation.choose import compress_command, recommendation
from kvtool.report.recommendation import lines
from tests.recommendation.made import candidate, estimate, evaluation

LOSSLESS = candidate("lossless", 27, 0.0)
KIVI = candidate("kivi:bits=4", 5.4, 0.002)
NF4 = candidate("nf4", 4.3, 0.02, kept=0.9)
KLT = candidate("klt:step=0.075", 0.2, 0.05, kept=0.85)
WORSE = candidate("gear", 6.0, 0.3, kept=0.2)


def chosen(*candidates: dict[str, Any]) -> dict[str, str | None]:
    result = recommendation(evaluation(*candidates))
    return {one["level"]: one["candidate"] for one in result["recommended"]}


def test_the_smallest_that_keeps_each_promise() -> None:
    assert chosen(LOSSLESS, KIVI, NF4, KLT, WORSE) == {
        "exact": "lossless",
        "safe": "kivi:bits=4",
        "small": "klt:step=0.075",
    }


def test_the_upper_end_of_the_interval_decides() -> None:
    # 0.009 is below the limit of 0.01, the upper end of its interval is not.
    assert chosen(LOSSLESS, candidate("cachegen", 4, 0.009))["safe"] == "lossless"


def test_retrieval_that_is_lost_is_not_safe() -> None:
    assert chosen(KIVI, candidate("turboquant", 3, 0.003, kept=0.9))["safe"] == "kivi:bits=4"
    assert chosen(KIVI, candidate("turboquant", 3, 0.003, kept=0.7))["small"] == "kivi:bits=4"


def test_retrieval_that_the_model_cannot_do_is_not_held_against_it() -> None:
    made = evaluation(candidate("klt", 0.8, 0.004))
    for one in made["candidates"]:
        one["retrieval"] |= {"score": estimate(0.0), "retention": None}
    assert [one["candidate"] for one in recommendation(made)["recommended"]] == ["raw", "klt", "klt"]


def test_nothing_is_recommended_that_loads_no_sooner_than_a_prefill() -> None:
    late = {**KIVI, "times": {"load_seconds": 5.0, "ttft_speedup": estimate(0.7)}}
    assert chosen(LOSSLESS, late)["safe"] == "lossless"


def test_without_a_candidate_it_says_so() -> None:
    made = evaluation(NF4)
    made["candidates"][0]["times"]["ttft_speedup"] = estimate(0.9)
    exact, safe, small = recommendation(made)["recommended"]
    assert (exact["candidate"], exact["command"]) == (None, None)
    assert "none of the 2 candidates on the frontier keeps every bit of the raw cache" in exact["reason"]
    assert safe["candidate"] is None
    assert small["candidate"] == "nf4"


def test_those_off_the_frontier_name_who_dominates_them() -> None:
    result = recommendation(evaluation(LOSSLESS, KIVI, WORSE))
    assert {one["name"]: one["dominated_by"] for one in result["candidates"]} == {
        # Lossless loads as quickly here.
        "raw": "lossless",
        "lossless": None,
        "kivi:bits=4": None,
        "gear": "kivi:bits=4",
    }


def test_a_reason_has_figures() -> None:
    safe = recommendation(evaluation(LOSSLESS, KIVI, KLT))["recommended"][1]
    assert safe["reason"] == (
        "the smallest of 2 that keep KL at most 0.01, retrieval kept at least 95 %, not to be told from raw: 5.40 bits per "
        "value, 5.9 times smaller than raw, KL 0.0020 (0.0016 to 0.0024), retrieval kept 100 %, first token 5.0 times "
        "sooner than with a full prefill"
    )


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("raw", None),
        ("a-variant-of-the-store", None),
        ("nf4", "kvtool compress --recipe nf4"),
        ("klt:step=0.03", "kvtool compress --recipe klt --set step=0.03 --name klt-safe"),
        (
            "kivi:keys=kvquant:3:values=2",
            "kvtool compress --recipe kivi --keys kvquant:3 --values 2 --name kivi-safe",
        ),
    ],
)
def test_the_command_that_makes_it(text: str, command: str | None) -> None:
    assert compress_command(text, "safe") == command


def test_names_and_flags_are_quoted() -> None:
    command = compress_command("nf4", "safe", ["a file.md"], ["--store", "my store"])
    assert command == "kvtool compress 'a file.md' --recipe nf4 --store 'my store'"


def test_the_terminal_shows_frontier_and_choices() -> None:
    shown = lines(recommendation(evaluation(LOSSLESS, KIVI, WORSE)))
    assert [line.split()[:2] for line in shown if line.startswith("*")][:2] == [
        ["*", "kivi:bits=4"],
        ["*", "lossless"],
    ]
    assert any(line.startswith("  gear ") for line in shown)
    assert shown[-2].startswith("small: kivi:bits=4, ")
    assert shown[-1] == "  kvtool compress --recipe kivi --set bits=4 --name kivi-small"
