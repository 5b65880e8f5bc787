"""The table in the terminal: what it shows is what was measured."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kvtool.report.numbers import estimated, plain
from kvtool.report.table import table

Make = Callable[..., dict[str, Any]]


def lines_of(evaluation: dict[str, Any]) -> dict[str, str]:
    """Each candidate's line."""
    lines = table(evaluation).splitlines()
    return {name: next(line for line in lines if line.startswith(name)) for name in names_of(evaluation)}


def names_of(evaluation: dict[str, Any]) -> list[str]:
    return [candidate["name"] for candidate in evaluation["candidates"]]


def test_raw_is_first_then_the_order_is_by_size(make_evaluation: Make) -> None:
    lines = table(make_evaluation()).splitlines()
    bits = [float(line.split()[1]) for line in lines[1 : lines.index("")]]
    assert lines[1].startswith("raw ")
    assert bits[0] == 32
    assert bits[1:] == sorted(bits[1:])
    assert len(bits) == 6


def test_each_line_has_the_candidates_numbers(make_evaluation: Make) -> None:
    evaluation = make_evaluation()
    for candidate in evaluation["candidates"]:
        line = lines_of(evaluation)[candidate["name"]]
        numbers = re.findall(r"(?<![\w:=±.])-?\d+\.?\d*(?:e-\d+)?", line.removeprefix(candidate["name"]))
        kept = candidate["retrieval"]["retention"]
        expected = [
            candidate["bits_per_value"],
            candidate["ratio"],
            candidate["memory"]["bits_per_value"],
            candidate["kl"]["value"],
            candidate["dnll"]["value"],
            100 * candidate["top1"]["value"],
            candidate["retrieval"]["score"]["value"],
            *([100 * kept["value"]] if kept else []),
            candidate["answers"]["f1"]["value"],
            candidate["times"]["ttft_speedup"]["value"],
        ]
        assert list(map(float, numbers)) == pytest.approx(expected, rel=0.15, abs=0.02)


def test_numbers_and_spreads_stand_below_each_other(make_evaluation: Make) -> None:
    lines = table(make_evaluation()).splitlines()
    body = lines[: lines.index("")]
    places = [{match.start() for match in re.finditer("±", line)} for line in body[1:]]
    assert len(set.union(*places)) == max(map(len, places)) == 6
    assert max(map(len, lines)) < 130


def test_what_noise_explains_is_marked(make_evaluation: Make) -> None:
    evaluation = make_evaluation()
    for candidate in evaluation["candidates"]:
        line = lines_of(evaluation)[candidate["name"]]
        dnll, kept = candidate["dnll"], candidate["retrieval"]
        noisy = dnll["low"] <= 0 <= dnll["high"] and dnll["low"] < dnll["high"]
        assert line.count("≈") == noisy + (kept["retention"] is not None and not kept["differs_from_raw"])


def test_columns_that_nobody_has_are_left_out(make_evaluation: Make) -> None:
    evaluation = make_evaluation(gate=None)
    for candidate in evaluation["candidates"]:
        candidate |= {"retrieval": None, "answers": None, "times": None}
    head = table(evaluation).splitlines()[0].split()
    assert head == ["candidate", "bits", "ratio", "memory", "KL", "dNLL", "top-1", "%"]
    evaluation["candidates"][1]["kl"] = None
    assert "–" in lines_of(evaluation)["lossless"]


def test_the_gate_names_what_failed(make_evaluation: Make) -> None:
    evaluation = make_evaluation()
    unmeasured = {"candidate": "nf4", "metric": "retrieval", **dict.fromkeys(("value", "low", "high", "n"))}
    evaluation["gate"].append(unmeasured | {"limit": 0.95, "passed": False, "significant": False})
    gate = [line for line in table(evaluation).splitlines() if line.startswith("gate ")]
    assert len(gate) == len(evaluation["gate"])
    failed = [line for line in gate if line.startswith("gate FAILED")]
    assert [line.split(": ")[1] for line in failed] == ["kivi:bits=2", "kvpress:knorm", "nf4"]
    assert "limit 0.05" in failed[0]
    assert "KL 0.061 (" in failed[0]
    assert "retrieval kept has no number, limit 0.95" in failed[-1]


def test_near_the_limit_is_said(make_evaluation: Make) -> None:
    check = {"candidate": "kivi", "metric": "kl", "value": 0.049, "low": 0.03, "high": 0.06, "n": 6}
    check["limit"] = 0.05
    near = make_evaluation(gate=[check | {"passed": True, "significant": False}])
    far = make_evaluation(gate=[check | {"passed": True, "significant": True}])
    assert table(near).endswith("limit 0.05; cannot be told from the limit")
    assert table(far).endswith("limit 0.05")


def test_control_characters_do_not_reach_the_terminal(make_evaluation: Make) -> None:
    evil = "\x1b[2J\rkivi\x07\u202e"
    shown = table(make_evaluation(candidates=((evil, "kivi", "recipe", 4.0, 0.01),)))
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "kivi" in shown


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "text", "spread"),
    [
        (0.00421, 0.0036, 0.0049, 6, "0.0042", "±0.0007"),
        (0.061, 0.050, 0.072, 6, "0.061", "±0.011"),
        (0.00005, -0.01, 0.011, 6, "0.000", "±0.011"),
        (-0.0004, -0.03, 0.03, 6, "0.00", "±0.03"),
        (0.0, 0.0, 0.0, 6, "0", ""),
        (1.0, 1.0, 1.0, 6, "1", ""),
        (0.25, 0.25, 0.25, 1, "0.25", "±?"),
        (12.3, 11.0, 15.0, 6, "12", "±3"),
        (3e-9, 2e-9, 4e-9, 6, "3e-09", ""),
    ],
)
def test_digits_follow_the_interval(
    value: float, low: float, high: float, n: int, text: str, spread: str
) -> None:
    cell = estimated({"value": value, "low": low, "high": high, "n": n})
    assert (cell.text, cell.spread, cell.value) == (text, spread, value)


def test_plain_numbers() -> None:
    values = (0.05, 0.123456, 1234.5, 3e-9, float("nan"), None)
    assert [plain(value) for value in values] == ["0.05", "0.123", "1234.5", "3e-09", "nan", "–"]


def test_the_table_does_not_wait_for_matplotlib() -> None:
    code = "import sys, kvtool.report.table, kvtool.report.page; print({'matplotlib', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_evaluations_from_before_memory_was_measured_are_shown_without_it(make_evaluation: Make) -> None:
    evaluation = make_evaluation()
    assert "memory" in table(evaluation)
    for candidate in evaluation["candidates"]:
        del candidate["memory"]
    assert "memory" not in table(evaluation)
