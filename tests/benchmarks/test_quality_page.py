"""The page of compared recipes: a row for each candidate, and the calibrations with their sizes."""

from __future__ import annotations

from typing import Any

from benchmarks.pages.quality_page import markdown


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": value * 2}


def candidate(name: str, kind: str, ratio: float) -> dict[str, Any]:
    score = {"score": estimate(0.5), "questions": 30}
    return {
        "name": name,
        "kind": kind,
        "family": name.split(":")[0],
        "paper": "",
        "summary": f"summary of {name}",
        "bits_per_value": 16 / ratio,
        "ratio": ratio,
        "kl": estimate(0.02),
        "dnll": {"value": 0.01, "low": -0.01, "high": 0.03},
        "top1": estimate(0.5),
        "retrieval": {
            **score,
            "bits_per_value": 20 / ratio,
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
        "command": "python -m benchmarks quality",
        "model": {"name": "tiny", "layers": 2, "kv_heads": 3},
        "documents": [{"name": "a"}, {"name": "b"}, {"name": "b"}],
        "settings": {"context": 1024, "tokens": 256},
        "haystacks": [{"length": 512, "number": 2, "keys": 10}, {"length": 1024, "number": 1, "keys": 10}],
        "values_per_token": 2 * 2 * 3 * 64,
        "failed": {"xkv:bits=9": "has no 9 bits"},
        "differs": {"klt": "Nothing.", "hqq": "The tool itself."},
        "rows": {
            "klt": {
                "advised": True,
                "advice": "The default.",
                "calibration": {"nbytes": 4_000_000, "tokens": 16384, "documents": 24},
            },
            "hqq": {"advised": False, "advice": "A coarser point.", "calibration": None},
        },
        "candidates": [
            candidate("raw", "raw", 0.5),
            candidate("klt", "recipe", 80),
            candidate("hqq", "peer", 4),
        ],
        "times": {"prefill_seconds": 6.0, "tokens": 1024, "repeats": 3},
    }


def rows() -> list[str]:
    return [line for line in markdown(evaluation()).splitlines() if line.startswith("| ")]


def test_rows_go_from_many_bits_to_few_with_other_tools_in_bold_and_added_ones_in_italics() -> None:
    assert [row.split(" | ")[0] for row in rows()[2:5]] == ["| raw", "| ***hqq***", "| klt"]


def test_a_row_has_its_calibration_and_ratios_to_prefill_and_marks_what_may_be_no_loss() -> None:
    klt, hqq = rows()[4], rows()[3]
    # 0.2 bits, and 4 MB over a million tokens of 768 values.
    assert klt.startswith(
        "| klt | 0.20 | 0.25 | 4.0 MB, 16,384 | 0.24 | 0.0200 (0.0100 to 0.0400) | ≈ 0.0100 "
    )
    assert klt.endswith("| 0.500 (0.250 to 1.000) | 0.50 (0.25 to 1.00) | 8.0 (4.0 to 16.0) | 0.50 | 0.083 |")
    assert hqq.startswith("| ***hqq*** | 4.00 | 5.00 |  |  | ")
    assert hqq.endswith("| ≈ 0.50 (0.25 to 1.00) |  | 0.50 | 0.083 |")


def test_the_page_says_what_was_measured_who_advises_it_what_differs_and_what_failed() -> None:
    page = markdown(evaluation(), [("bits against KL", "recipes-kl.svg")])
    assert "2 documents were measured" in page
    assert "2 of 512 tokens with 10 keys and 1 of 1,024 tokens with 10 keys" in page
    assert "- `klt`: The default.\n" in page
    assert "- `hqq`: A coarser point. Added by kvtool.\n\nWhat differs: The tool itself." in page
    assert "![bits against KL](recipes-kl.svg)" in page
    assert "## Rows that failed\n\n- `xkv:bits=9`: has no 9 bits" in page


def test_the_page_says_what_small_heads_cost() -> None:
    page = markdown(evaluation())
    assert "2 layers with 3 key-value heads of 64 channels" in page
    assert "| a scale and a zero for each token and head | `mikv`, `rotatekv` | 0.50 | 0.25 | 0.25 |" in page
    assert "one over all heads 5.3 times" in page


def test_the_frontier_is_named() -> None:
    assert "at once than these: `klt` (0.20 bits, 0.0200)." in markdown(evaluation())
