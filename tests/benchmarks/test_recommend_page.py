"""The page of recommendations: a row for each choice, and whether its promise holds on what was not seen."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.pages.recommend_page import held, markdown
from kvtool.recommendation.choose import recommendation
from kvtool.recommendation.levels import LEVELS
from tests.recommendation.made import candidate, estimate, evaluation

EXACT, SAFE, SMALL = LEVELS
LOSSLESS, KIVI, KLT = (
    candidate("lossless", 27, 0.0),
    candidate("kivi:bits=4", 5.4, 0.002),
    candidate("klt", 0.2, 0.05),
)


@pytest.mark.parametrize(
    ("kl", "kept", "verdict"),
    [
        (0.009, 1.0, "yes"),
        (0.011, 1.0, "within chance"),
        (0.02, 1.0, "no"),
        (0.001, 0.94, "within chance"),
        (0.001, 0.9, "no"),
    ],
)
def test_a_promise_is_broken_only_outside_the_interval(kl: float, kept: float, verdict: str) -> None:
    assert held(SAFE, candidate("nf4", 4, kl, kept)) == verdict


def test_exact_is_exact() -> None:
    assert (held(EXACT, LOSSLESS), held(EXACT, KIVI)) == ("yes", "no")


def corpus(kind: str, unseen: dict[str, Any]) -> dict[str, Any]:
    seen = evaluation(LOSSLESS, KIVI, KLT)
    seen["settings"] = {"documents": 2, "context": 1000, "tokens": 128, "lengths": [512]}
    seen["candidates"][0]["retrieval"]["questions"] = 18
    calibration = {"method": "klt", "bytes": 56_200_000, "source": {"tokens": 4096, "documents": 8}}
    return {
        "kind": kind,
        "sources": ["one", "two"],
        "recommendation": recommendation(seen),
        "unseen": evaluation(LOSSLESS, unseen, KLT),
        "calibrations": [calibration],
    }


def test_a_row_for_each_corpus_and_level() -> None:
    worse = {**KIVI, "kl": estimate(0.03)}
    corpora = [corpus("prose", KIVI), corpus("tables", worse)]
    page = markdown(
        {"command": "python -m benchmarks recommend", "machine": "x", "model": "tiny", "corpora": corpora}
    )
    rows = [line for line in page.splitlines() if line.startswith(("| prose", "| tables"))]
    assert len(rows) == 6
    assert rows[1] == (
        "| prose | safe | `kivi:bits=4` | 5.40 | 0.0020 (0.0016 to 0.0024) | 1.00 | 0.0020 (0.0016 to 0.0024) | 1.00 | yes |"
    )
    assert rows[4].endswith("| 0.03 | 1.00 | no |")
    assert "`klt` 56.2 MB, from 4,096 tokens of 8 texts" in page
    assert "## Tables" in page
