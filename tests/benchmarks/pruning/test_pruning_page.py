"""The page of pruning: tables by share, all rows, and combinations held against klt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages import pruning_pictures
from benchmarks.pages.against import against
from benchmarks.pages.pruning_page import markdown


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": value}


def candidate(name: str, bits: float, kl: float, kept: float | None) -> dict[str, Any]:
    retrieval = {
        "bits_per_value": bits,
        "score": estimate(0.8),
        "questions": 200,
        "retention": None if kept is None else estimate(kept),
    }
    return {
        "name": name,
        "family": name.partition(":")[0],
        "kind": "recipe",
        "summary": "A summary",
        "paper": "2505.23416 KVzip",
        "bits_per_value": bits,
        "kl": estimate(kl),
        "retrieval": retrieval,
    }


ROWS = {
    "kvzip:keep=0.5": (8.0, 0.01, 1.0),
    "kvzip:keep=0.3": (5.0, 0.05, 0.9),
    "kvzip:heads=ada-kv:keep=0.3": (5.0, 0.04, 0.95),
    "h2o:keep=0.3": (5.0, 0.2, 0.2),
    "klt:step=0.02": (1.0, 0.01, 1.0),
    "klt:step=0.08": (0.4, 0.16, 0.5),
    "kvzip+klt:keep=0.5:step=0.02": (0.5, 0.02, 1.0),
    "kvzip+klt:keep=0.3:step=0.08": (0.1, 0.5, 0.4),
    "kvzip+klt:keep=0.7:step=0.02": (0.5, 0.005, 1.0),
}


def result() -> dict[str, Any]:
    cost = {"collect_seconds": 2.0, "encode_seconds": 1.0, "load_seconds": 0.5}
    raw = {"stored_bytes": 1000, "resident_bytes": 2000} | dict.fromkeys(cost, 0.0)
    return {
        "kvtool": "1",
        "machine": dict.fromkeys(("cores", "processor", "device", "python", "torch", "transformers"), "?"),
        "command": "python -m benchmarks pruning",
        "model": {"name": "tiny", "dtype": "float32"},
        "documents": [{"name": "a"}, {"name": "b"}],
        "settings": {"context": 1024, "tokens": 256},
        "haystacks": {"lengths": [1500, 3000], "number": 10, "keys": 10},
        "timed": {"tokens": 3000},
        "failed": {"cake:keep=0.1": "out of luck"},
        "differs": {"kvzip": "The prefix is kept whole.", "h2o": "Nothing."},
        "rows": {
            name: {
                "keep": float(name.partition("keep=")[2][:3] or 1),
                "method": name.replace(":keep=0.3", "").replace(":keep=0.5", ""),
                "what": "With other budgets." if "ada-kv" in name else "",
            }
            for name in ROWS
        },
        "costs": {"raw": raw} | {name: {"stored_bytes": 100, "resident_bytes": 600, **cost} for name in ROWS},
        "candidates": [
            candidate("raw", 32.0, 0.0, None),
            *(candidate(name, *numbers) for name, numbers in ROWS.items()),
        ],
    }


def test_methods_are_rows_and_shares_are_columns() -> None:
    page = markdown(result(), [("bits against KL", "pruning-kl.svg")])
    assert "|  | 0.5 | 0.3 |" in page
    assert "| `kvzip` | 0.0100 | 0.0500 |" in page
    assert "| `kvzip:heads=ada-kv` |  | 0.950 |" in page
    assert "by `kvzip:keep=0.5` (1.000), `kvzip:heads=ada-kv:keep=0.3` (0.950)." in page
    assert "![bits against KL](pruning-kl.svg)" in page


def test_a_row_has_its_bytes_against_raw_and_its_seconds() -> None:
    line = "| `h2o:keep=0.3` | 0.3 | 5.000 | 0.1000 | 0.300 | 0.2000 (0.1000 to 0.2000) | 0.200 (0.100 to 0.200) | "
    page = markdown(result())
    assert f"{line}0.800 (0.400 to 0.800) | 2.0 | 1.0 | 0.50 |" in page
    assert "200 questions over haystacks of 1,500 and 3,000 tokens: 10 of each length, with 10 keys" in page
    assert "- `kvzip:heads=ada-kv`: With other budgets." in page
    assert "What differs: The prefix is kept whole." in page
    assert "- `cake:keep=0.1`: out of luck" in page


def test_a_combination_is_held_against_what_klt_needs_to_be_as_good_in_both() -> None:
    first, beyond, better = against(*_split(result()))
    # A quarter of the way from 0.01 to 0.16, in logarithms: 1 bit to 0.4.
    assert first.at_kl == pytest.approx(0.4**0.25)
    assert first.at_kept == 1.0
    assert first.share == pytest.approx(0.5)
    assert beyond.at_most
    assert beyond.at_kept == 0.4
    # The answers decide as well, and of them the bits are known.
    assert not beyond.is_bound
    assert better.at_kl is None
    assert better.share is None
    page = markdown(result())
    assert "| `kvzip+klt:keep=0.5:step=0.02` | 0.500 | 0.300 | 0.795 | 1.000 | 0.50 |" in page
    assert "| `kvzip+klt:keep=0.3:step=0.08` | 0.100 | 0.300 | ≤ 0.400 | 0.400 | 0.25 |" in page
    assert "| `kvzip+klt:keep=0.7:step=0.02` | 0.500 | 0.300 | never | 1.000 | never |" in page


def test_without_haystacks_kl_alone_counts() -> None:
    measured = result()
    for one in measured["candidates"]:
        one["retrieval"] = None
    page = markdown(measured)
    assert "Retrieval was not measured." in page
    assert "Answers kept by the share" not in page
    # 0.5 bits where klt needs 0.4 ** 0.25 = 0.795.
    assert "| `kvzip+klt:keep=0.5:step=0.02` | 0.500 | 0.300 | 0.795 |  | 0.63 |" in page
    assert "| `kvzip+klt:keep=0.3:step=0.08` | 0.100 | 0.300 | ≤ 0.400 |  | ≥ 0.25 |" in page


def _split(measured: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    some = measured["candidates"]
    return [one for one in some if one["family"] == "klt"], [one for one in some if "+" in one["family"]]


def test_pictures_have_a_line_for_each_method_and_name_the_best(tmp_path: Path) -> None:
    measured = result()
    drawn = pruning_pictures.draw(measured, tmp_path, "page")
    assert [path.name for _, path in drawn] == ["page-kl.svg", "page-kept.svg"]
    again = pruning_pictures.draw(measured, tmp_path, "again")
    assert [path.read_bytes() for _, path in again] == [path.read_bytes() for _, path in drawn]
    for one in measured["candidates"]:
        one["retrieval"] = None
    assert [path.name for _, path in pruning_pictures.draw(measured, tmp_path, "page")] == ["page-kl.svg"]


def test_the_best_method_beats_most_at_the_shares_that_it_has() -> None:
    lines = [("one", [0.1, 0.3], [0.5, 0.2]), ("two", [0.3], [0.1]), ("three", [0.1, 0.3], [0.9, 0.8])]
    assert pruning_pictures.best_first(lines, least=True) == ["two", "one", "three"]
    assert pruning_pictures.best_first(lines, least=False) == ["three", "one", "two"]
