"""Exercises say in how many files a change is made, and the map of the architecture says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXERCISES = sorted(path for path in (DOCS / "exercises").glob("*.md") if path.stem != "index")
WHERE = re.compile(r"^\|[^|]*\|([^|]*)\|$", re.MULTILINE)


@pytest.mark.parametrize("page", EXERCISES, ids=lambda page: page.stem)
def test_the_map_says_the_same_number_of_files(page: Path) -> None:
    number = re.search(r"(?:adds|changes) \*\*(\w+)\s+files?\*\*", page.read_text())
    assert number, f"{page} does not say in how many files the change is made"
    rows = WHERE.findall((DOCS / "explanation" / "architecture.md").read_text())
    (row,) = [row for row in rows if f"(../exercises/{page.name})" in row]
    assert re.match(rf" {number[1]} (?:new )?files?\b", row)


def test_there_is_an_exercise_for_each_of_the_four() -> None:
    assert [page.stem for page in EXERCISES] == ["blend-policy", "metric", "recipe", "store-backend"]
