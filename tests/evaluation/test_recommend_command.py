"""kvtool recommend: the table and the choices on stdout, what is left out and how long it takes on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app
from kvtool.errors import DONE, USAGE, ModelError
from kvtool.evaluation import evaluation
from kvtool.evaluation.candidates import Candidate, Coded
from kvtool.evaluation.timing import Times
from kvtool.measurement.contexts import Context
from kvtool.recommendation import recommend
from kvtool.store.local import LocalStore

SPEEDUP = {"value": 9.0, "low": 8.0, "high": 10.0, "n": 1}
TIMES = {
    "encode_seconds": 1.0,
    "load_seconds": 0.1,
    "ttft_seconds": 0.2,
    "ttft_speedup": SPEEDUP,
    "peak_bytes": 1,
}
TINY = replace(recommend.SCOPE, documents=2, context=128, tokens=32, lengths=(512,), repeats=1)


@pytest.fixture(autouse=True)
def small(
    documents: LocalStore, lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVTOOL_STORE", str(documents.root))
    monkeypatch.setenv("KVTOOL_MODEL", str(lively.directory))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")
    monkeypatch.setattr(recommend, "SCOPE", TINY)
    # A model this small prefills about as quickly as its caches load.
    monkeypatch.setattr(evaluation, "measure_times", times)


def times(_: object, context: Context, candidates: Sequence[Candidate], *__: object) -> Times:
    return Times({"document": context.name, "prefill_seconds": 2.0}, [TIMES] * len(candidates))


def run(*args: str, code: int = DONE) -> Result:
    result = CliRunner().invoke(app, ["recommend", *args])
    assert result.exit_code == code, (args, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result  # type: ignore[return-value]


def test_a_table_and_a_choice_for_each_level(documents: LocalStore) -> None:
    result = run("a.txt", "--recipes", "lossless,kivi:bits=4:recent=0")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["candidate", "bits"]
    assert any(line.startswith("* lossless ") for line in lines)
    assert [line.split(":")[0] for line in lines if line.startswith(("exact", "safe", "small"))] == [
        "exact",
        "safe",
        "small",
    ]
    assert f"  kvtool compress a.txt --recipe lossless --store {documents.root} --model" in result.stdout
    assert "3 candidates, raw among them, on 1 segment" in result.stderr


def test_json_has_the_evaluation_and_the_choices() -> None:
    result = json.loads(run("a.txt", "--recipes", "lossless", "--json").stdout)
    assert [one["level"] for one in result["recommended"]] == ["exact", "safe", "small"]
    assert {one["candidate"] for one in result["recommended"]} == {"lossless"}
    assert [one["name"] for one in result["candidates"]] == ["raw", "lossless"]
    assert result["evaluation"]["candidates"][1]["kl"]["value"] == 0


def test_what_is_left_out_is_named() -> None:
    result = run("--dry-run")
    assert "klt is left out: the store has no calibration for it. Run kvtool calibrate --recipe klt" in (
        result.stderr
    )
    assert "7 candidates, raw among them" in result.stderr
    assert result.stdout == ""


def test_a_default_that_the_model_cannot_use_is_left_out(
    documents: LocalStore, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Coded, _: object) -> None:
        raise ModelError(self.name, "needs even heads")

    monkeypatch.setattr(recommend, "CANDIDATES", ("nf4",))
    monkeypatch.setattr(Coded, "restore", refuse)
    result = kvtool.recommend(documents, "a.txt", model=lively, scope=replace(TINY, metrics=("kl", "times")))
    assert [one["name"] for one in result["candidates"]] == ["raw"]
    assert [one["candidate"] for one in result["recommended"]] == ["raw"] * 3
    assert any("nf4 is left out" in note for note in result["evaluation"]["notes"])
    assert "cannot be used with" in run("a.txt", "--recipes", "nf4", code=USAGE).stderr


def test_a_recipe_without_its_calibration_is_refused_by_name() -> None:
    assert "needs a calibration" in run("--recipes", "klt", code=USAGE).stderr
