"""``blend``'s tables: what stands in them is what was measured."""

from __future__ import annotations

from typing import Any

from benchmarks.pages import blend_page
from benchmarks.pages.blend_page import FULL, REFERENCE
from benchmarks.quality.blend_rows import Blended, candidates, usual_candidates


def record(kl: list[float], same: list[float], right: list[float]) -> dict[str, Any]:
    return {"kl": kl, "same": same, "right": right, "plain": kl[:1], "kinds": ["hop", "prose"]}


def found() -> dict[str, Any]:
    compared = [Blended("cacheblend", 0.15), Blended("drift", 0.15, "averaged", "random")]
    sets = {
        "blend-00": {
            "documents": 4,
            "tokens": 900,
            "candidates": {
                FULL: record([0.0, 0.0], [1.0, 1.0], [1.0]),
                REFERENCE: record([0.1, 0.3], [0.0, 1.0], [0.0]),
                compared[1].name: record([0.02, 0.02], [1.0, 1.0], [1.0]),
            },
        },
        "blend-01": {
            "documents": 8,
            "tokens": 2000,
            "candidates": {
                FULL: record([0.0, 0.0], [1.0, 1.0], [0.0]),
                REFERENCE: record([0.2, 0.2], [0.0, 0.0], [0.0]),
                compared[1].name: record([0.02, 0.1], [0.0, 1.0], [0.0]),
            },
        },
    }
    return {
        "command": "python -m benchmarks blend",
        "machine": "a machine",
        "model": "tiny",
        "sets": sets,
        "one_source": {"news-02": sets["blend-01"]},
        "candidates": [
            {"name": c.name, "method": c.method, "source": c.source, "share": c.share, "asks": c.asks}
            for c in compared
        ],
        "nbytes": {"raw": 2_000_000},
        "prefill": {
            "documents": 6,
            "tokens": 200,
            "repeats": 3,
            "seconds": {"prefill": 2.0, "4 neighbours, random": 9.0},
        },
        "times": [{"tokens": 4096, "repeats": 5, "seconds": {FULL: 8.0, REFERENCE: 2.0}}],
    }


def _table(*, asks: bool) -> list[str]:
    return blend_page.policies(found(), found()["sets"], asks=asks).splitlines()


def test_what_knows_the_question_has_a_table_of_its_own() -> None:
    """Beside CacheBlend, which it is compared with."""
    assert [line.split("|")[1].strip() for line in _table(asks=True)[2:]] == ["full prefill", "cacheblend"]
    assert len(_table(asks=False)) == 5


def test_policies_are_compared_with_cacheblend_over_the_same_questions() -> None:
    rows = [[cell.strip() for cell in line.split("|")] for line in _table(asks=False)]
    full, cacheblend, ours = (list(row[1:-1]) for row in rows[2:])
    assert full[9] == "0.50"
    assert cacheblend[:2] == ["cacheblend", "15%"]
    assert cacheblend[4].startswith("0.2000 (")
    assert cacheblend[5].startswith("1.00 (1.00 to 1.00")
    assert cacheblend[6:8] == ["1.00", "1.00"]
    assert cacheblend[8:10] == ["0.25", "0.00"]
    assert cacheblend[10].startswith("0.500 (")
    # (0.02 + 0.02 + 0.02 + 0.1) ÷ 0.8
    assert ours[4].startswith("0.0400 (")
    assert ours[5].startswith("0.20 (")
    # In prose (0.02 + 0.1) ÷ 0.5, and of multi-hop questions (0.02 + 0.02) ÷ 0.3.
    assert ours[6:8] == ["0.24", "0.13"]
    assert ours[10].startswith("0.000 (")


def test_the_page_says_what_was_asked_and_how_fast_it_was() -> None:
    page = blend_page.body(found())
    assert "2 sets of 4 to 8 documents, 900 to 2,000 tokens" in page
    assert "2 multi-hop questions and 2 in prose" in page
    assert "one source (news). 1 sets of 8 to 8 documents" in page
    assert "| 4 neighbours, random | 4.50 |" in page
    assert "| cacheblend 15% raw | 0.250 | 4.0 |" in page


def test_continuations_are_of_blends_without_a_question() -> None:
    rows = [
        line.split("|")[5].strip() for line in blend_page.plain(found(), found()["sets"]).splitlines()[2:]
    ]
    assert [row.split()[0] for row in rows] == ["0.1500", "0.0200"]


def test_rows_of_the_other_sets_are_among_those_of_the_mixed_ones() -> None:
    assert {row.name for row in usual_candidates()} < {row.name for row in candidates()}
    assert REFERENCE in {row.name for row in usual_candidates()}


def test_every_candidate_has_a_name_of_its_own() -> None:
    names = [candidate.name for candidate in candidates()]
    assert len(set(names)) == len(names)
    assert REFERENCE in names
