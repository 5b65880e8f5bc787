"""The page of compared recipes: a row for each candidate, and the calibrations with their sizes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.pages.quality_page import markdown
from kvtool.codecs import Calibration


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": value * 2}


def candidate(name: str, kind: str, ratio: float) -> dict[str, Any]:
    score = {"score": estimate(0.5), "questions": 30}
    return {
        "name": name,
        "kind": kind,
        "summary": f"summary of {name}",
        "bits_per_value": 16 / ratio,
        "ratio": ratio,
        "kl": estimate(0.02),
        "dnll": {"value": 0.01, "low": -0.01, "high": 0.03},
        "top1": estimate(0.5),
        "retrieval": {
            **score,
            "tasks": {"single": score},
            "retention": None if kind == "raw" else estimate(0.5),
            "differs_from_raw": kind == "recipe",
        },
        "times": {
            "ttft_speedup": estimate(8.0) if kind != "peer" else None,
            "encode_seconds": 0.0 if kind == "raw" else 3.0,
            "load_seconds": 0.5,
        },
    }


def evaluation() -> dict[str, Any]:
    return {
        "kvtool": "1",
        "machine": dict.fromkeys(("cores", "processor", "device", "python", "torch", "transformers"), "?"),
        "model": {"name": "tiny"},
        "documents": [{"name": "a"}, {"name": "b"}, {"name": "b"}],
        "settings": {"context": 1024, "tokens": 256, "haystacks": 1, "lengths": [512, 1024]},
        "candidates": [
            candidate("raw", "raw", 0.5),
            candidate("klt", "recipe", 80),
            candidate("hqq", "peer", 4),
        ],
        "times": {"prefill_seconds": 6.0, "tokens": 1024, "repeats": 3},
    }


def calibration() -> Calibration:
    facts = {"model": "f", "source": {"tokens": 16384, "documents": 24}}
    return Calibration("klt", facts, {"mean": torch.zeros(1_000_000)})


def test_rows_go_from_many_bits_to_few_with_other_tools_in_bold() -> None:
    rows = [line for line in markdown(evaluation(), []).splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| raw", "| **hqq**", "| klt"]


def test_a_row_has_ratios_to_prefill_and_marks_what_may_be_no_loss() -> None:
    page = markdown(evaluation(), [])
    expected = "| klt | 0.20 | 80.0 | 0.0200 (0.0100 to 0.0400) | ≈ 0.0100 (-0.0100 to 0.0300) | 0.500 (0.250 to 1.000) "
    assert expected + "| 0.50 (0.25 to 1.00) | 8.0 (4.0 to 16.0) | 0.50 | 0.083 |" in page
    assert "| **hqq** | 4.00 " in page
    assert "| ≈ 0.50 (0.25 to 1.00) |  | 0.50 |" in page


def test_the_page_says_what_was_measured_and_with_which_calibrations() -> None:
    page = markdown(evaluation(), [calibration()])
    assert "2 documents were measured" in page
    assert "4 haystacks" in page
    assert "- `klt`: 4.0 MB, from 16,384 tokens of 24 texts" in page
    assert "- hqq: summary of hqq" in page
