"""Limits: kept or not, significant or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtool.errors import UsageError
from kvtool.evaluation.gate import Gate, read_baseline
from kvtool.measurement.scope import Scope
from kvtool.report.table import gate as lines


def estimate(value: float, width: float = 0.01, n: int = 5) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width, "n": n}


def candidates(**changes: Any) -> list[dict[str, Any]]:
    candidate = {
        "name": "kivi",
        "kind": "recipe",
        "ratio": 4.0,
        "kl": estimate(0.05),
        "dnll": estimate(0.02),
        "top1": estimate(0.9),
        "retrieval": {"retention": estimate(0.95)},
        "answers": {"f1": estimate(0.8)},
    }
    raw = {**candidate, "name": "raw", "kind": "raw", "ratio": 0.5}
    return [raw, {**candidate, **changes}]


def checks(gate: Gate, **changes: Any) -> list[dict[str, Any]]:
    return [check.to_json() for check in gate.checks(candidates(**changes))]


LIMITS = [
    ("max_kl", 0.1, 0.03),
    ("max_dnll", 0.1, 0.0),
    ("min_top1", 0.8, 0.95),
    ("min_retrieval", 0.9, 0.99),
    ("min_answers", 0.7, 0.9),
    ("min_ratio", 3.0, 5.0),
]


@pytest.mark.parametrize(("limit", "loose", "tight"), LIMITS)
def test_a_limit_is_kept_or_named(limit: str, loose: float, tight: float) -> None:
    (check,) = checks(Gate(**{limit: loose}))
    assert check["passed"]
    assert check["significant"]
    assert lines([check])[0].startswith("gate passed: kivi: ")
    (check,) = checks(Gate(**{limit: tight}))
    assert not check["passed"]
    (line,) = lines([check])
    assert line.startswith("gate FAILED: kivi: ")
    assert f"{tight:g}" in line


def test_raw_is_not_judged_and_every_limit_is() -> None:
    found = checks(Gate(max_kl=0.001, min_ratio=100.0))
    assert [(c["candidate"], c["passed"]) for c in found] == [("kivi", False), ("kivi", False)]
    assert checks(Gate()) == []


def test_noise_that_may_have_decided_is_said() -> None:
    (check,) = checks(Gate(max_kl=0.045))
    assert not check["significant"]
    assert "cannot be told from the limit" in lines([check])[0]


def test_one_document_tells_nothing_of_others() -> None:
    (check,) = checks(Gate(max_kl=0.5), kl=estimate(0.05, 0.0, n=1))
    assert check["passed"]
    assert not check["significant"]


@pytest.mark.parametrize(
    ("limit", "missing"), [("max_kl", "kl"), ("min_retrieval", "retrieval"), ("min_answers", "answers")]
)
def test_what_was_not_measured_does_not_pass(limit: str, missing: str) -> None:
    (check,) = checks(Gate(**{limit: 0.5}), **{missing: None})
    assert not check["passed"]
    assert "has no number" in lines([check])[0]


def test_a_ratio_is_held_against_the_baseline(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps({"candidates": candidates(ratio=4.4)}))
    baseline = read_baseline(path)
    assert baseline == {"raw": 0.5, "kivi": 4.4}
    assert checks(Gate(max_ratio_loss=0.1, baseline=baseline))[0]["passed"]
    (check,) = checks(Gate(max_ratio_loss=0.05, baseline=baseline))
    assert check["value"] == pytest.approx(1 - 4.0 / 4.4)
    assert "ratio loss 0.09" in lines([check])[0]
    with pytest.raises(UsageError, match="has no kivi, only other"):
        Gate(max_ratio_loss=0.05, baseline={"other": 1.0}).refuse_unmeasured(Scope(), False, ["kivi"])


ONE = '{"candidates": [{"name": "a"%s}]}'


@pytest.mark.parametrize("text", ["", "[]", "{}", ONE % "", ONE % ', "ratio": 0', "[" * 100_000, "\xff"])
def test_what_is_no_baseline_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "before.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"before\.json: is no evaluation"):
        read_baseline(path)


def test_a_missing_baseline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.json: cannot be read"):
        read_baseline(tmp_path / "nowhere.json")
