"""The frontier, labels, and what is stored beside codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages import quality_pictures
from benchmarks.pages.frontier import KEPT, KL, Point, frontier, points
from benchmarks.pages.overhead import Shape, overhead


def point(name: str, bits: float, loss: float) -> Point:
    return Point(name, name.split(":")[0], "recipe", bits, loss, loss)


def test_the_frontier_is_what_nothing_beats() -> None:
    best = [point("a", 1, 0.5), point("c", 2, 0.1), point("e", 8, 0.01)]
    others = [point("b", 2, 0.6), point("d", 4, 0.1), point("f", 2, 0.2)]
    assert frontier([*others, *best]) == best


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("klt", "klt"),
        ("kivi:bits=4:recent=0", "kivi 4/0"),
        ("klt:step=0.02, own documents", "klt 0.02*"),
        ("transformers-quanto:bits=2:axis_key=-1", "quanto 2/-1"),
    ],
)
def test_labels_are_short(name: str, label: str) -> None:
    assert point(name, 1, 1).label == label


def one(name: str, bits: float, kl: float, kept: float) -> dict[str, Any]:
    retrieval = {"bits_per_value": 2 * bits, "retention": {"value": kept}}
    return {
        "name": name,
        "family": name.split(":")[0],
        "kind": "peer" if name == "hqq" else "recipe",
        "bits_per_value": bits,
        "kl": {"value": kl},
        "retrieval": retrieval,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    raw = one("raw", 16, 0, 1) | {"retrieval": {"bits_per_value": 16, "retention": None}}
    rows = [one("lossless", 12, 0, 1), one("klt:step=0.1", 0.1, 0.04, 0.8), one("hqq", 4.5, 0.01, 0.9)]
    return {"candidates": [raw, *rows]}


def test_points_are_of_documents_and_of_haystacks(result: dict[str, Any]) -> None:
    assert [(p.name, p.bits, p.loss) for p in points(result, KL)] == [
        ("klt:step=0.1", 0.1, 0.04),
        ("hqq", 4.5, 0.01),
    ]
    assert [(p.bits, p.shown, round(p.loss, 6)) for p in points(result, KEPT)] == [
        (24, 1, 0),
        (0.2, 0.8, 0.2),
        (9, 0.9, 0.1),
    ]


def test_pictures_name_every_point(result: dict[str, Any], tmp_path: Path) -> None:
    drawn = quality_pictures.draw(result, tmp_path, "page")
    assert [path.name for _, path in drawn] == ["page-kl.svg", "page-kept.svg"]
    again = quality_pictures.draw(result, tmp_path, "again")
    assert [path.read_bytes() for _, path in again] == [path.read_bytes() for _, path in drawn]


def test_what_is_stored_for_each_head_costs_more_in_small_heads() -> None:
    small, usual = Shape(3, 64, 1024), Shape(8, 128, 1024)
    assert (small.per_head, usual.per_head) == (0.5, 0.25)
    assert small.per_token == pytest.approx(32 / 192)
    assert small.low_rank == pytest.approx(4 * 16 * (1024 + 64) / (1024 * 64))
    assert small.window == 2
    assert "| 0.50 | 0.25 | 0.25 |" in overhead(3, 64, 1024)
