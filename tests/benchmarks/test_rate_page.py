"""The tables of a run's JSON, and their place in a page."""

from __future__ import annotations

from typing import Any

import pytest

import kvtool
from benchmarks.pages import rate_page, tables


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": value * 2, "n": 3}


def figures(ratio: float, kl: float) -> dict[str, Any]:
    return {
        "bits_per_value": 16 / ratio,
        "ratio": ratio,
        "kl": estimate(kl),
        "dnll": estimate(kl / 2),
        "top1": estimate(0.5),
    }


def candidate(name: str, ratio: float, kl: float, calibration: int = 0) -> dict[str, Any]:
    return {
        "name": name,
        "family": name.split(":")[0],
        **figures(ratio, kl),
        "by_kind": {"prose": figures(ratio, kl), "tables": figures(2 * ratio, kl)},
        "bytes_per_token": 23_040 / ratio,
        "calibration_nbytes": calibration,
    }


def retrieved(name: str, ratio: float, found: int) -> dict[str, Any]:
    return {
        "name": name,
        "family": name.split(":")[0],
        "ratio": ratio,
        "haystacks": ["a", "b"],
        "found": found,
        "asked": 100,
        "score": estimate(found / 100),
        "lost": estimate((80 - found) / 100),
    }


@pytest.fixture
def found() -> dict[str, Any]:
    return {
        "command": "python -m benchmarks rate_distortion",
        "machine": dict.fromkeys(("cores", "processor", "device", "python", "torch", "transformers"), "?"),
        "model": {"name": "tiny"},
        "settings": {"context": 1024, "tokens": 256, "lengths": [1500, 3000], "keys": 10},
        "documents": [{"name": "a", "kind": "prose", "source": "a book"}],
        "values_per_token": 11_520,
        "compared": ["klt"],
        "candidates": [
            candidate("klt:step=0.01", 10, 0.001, calibration=3_000_000),
            candidate("klt:step=0.1", 100, 0.1, calibration=3_000_000),
            candidate("kivi:bits=2", 4, 0.01),
        ],
        "retrieval": [retrieved("raw", 1, 80), retrieved("klt:step=0.01", 10, 79), retrieved("kivi", 4, 40)],
        "times": [
            {
                "tokens": 1024,
                "repeats": 3,
                "prefill_seconds": 6.0,
                "candidates": {
                    "raw": {"encode_seconds": 0.0, "load_seconds": 0.1, "ttft_speedup": estimate(30)},
                    "klt": {"encode_seconds": 3.0, "load_seconds": 0.25, "ttft_speedup": None},
                },
            }
        ],
    }


def test_ratios_at_a_kl_come_from_the_curve_and_from_nothing_beyond_it(found: dict[str, Any]) -> None:
    lines = rate_page.at_kl(found).splitlines()
    assert lines[2] == "| klt | 77.5× | 44.7× | 24.5× |"
    assert lines[3] == "| kivi | ≥ 4.0× | ≥ 4.0× | not reached |"
    assert lines[5] == "| klt, tables | 154.9× | 89.4× | 49.0× |"


def test_bytes_at_equal_kl(found: dict[str, Any]) -> None:
    lines = rate_page.equal_kl(found, "klt").splitlines()
    assert lines[2:] == ["| kivi:bits=2 | 0.0100 | 4.0 | 31.6× | 0.126 |"]


def test_a_store_pays_for_its_calibration_once(found: dict[str, Any]) -> None:
    lines = rate_page.totals(found).splitlines()
    assert lines[2] == "| klt:step=0.01 | 3.0 MB | 26.0 MB, 8.8 | 233.4 MB, 9.9 | 2.31 GB, 10.0 |"
    assert len(lines) == 4


def test_times_are_ratios(found: dict[str, Any]) -> None:
    lines = rate_page.times(found["times"][0]).splitlines()
    assert lines[2:] == ["| raw |  | 60.0 | 30.0 (15.0 to 60.0) |", "| klt | 0.50 | 24.0 |  |"]


def test_what_is_no_number_is_said_and_is_no_point(found: dict[str, Any]) -> None:
    found["candidates"][2]["kl"] = None
    assert "| kivi:bits=2 | 4.000 | 4.0 | no number |" in rate_page.distortion(found)
    assert rate_page.curve(found, "kivi") == []


def test_the_whole_names_what_keeps_retrieval(found: dict[str, Any]) -> None:
    body = rate_page.body(found, [("KL against ratio", "klt-kl.svg")])
    assert "200 questions" not in body
    assert "`klt` loses no more than 0.02 of them up to 10.0×." in body
    assert "![KL against ratio](klt-kl.svg)" in body
    found |= {"retrieval": [], "times": []}
    assert "retrieval" not in rate_page.body(found)


def test_tables_stand_between_the_markers_of_their_model() -> None:
    first, last = tables.markers("rate_distortion", "tiny")
    other = "\n".join(tables.markers("rate_distortion", "other"))
    page = f"# Title\n\n{other}\n\n{first}\nold\n{last}\n\nEnd\n"
    new = tables.replaced(page, "rate_distortion", "tiny", "\nnew\n")
    assert new == f"# Title\n\n{other}\n\n{first}\n\nnew\n\n{last}\n\nEnd\n"
    assert tables.replaced(new, "rate_distortion", "tiny", "new") == new
    for broken in ("# Title", f"{last}\n{first}", f"{page}{first}"):
        with pytest.raises(kvtool.KvtoolError, match="expected the lines"):
            tables.replaced(broken, "rate_distortion", "tiny", "new")
