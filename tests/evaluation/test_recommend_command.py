"""kvtool recommend: the table and the choices on stdout, what is left out and how long it takes on stderr."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app
from kvtool.codecs import CodecError
from kvtool.errors import DONE, USAGE
from kvtool.evaluation.candidates import Coded
from kvtool.recommendation import recommend
from kvtool.store.local import LocalStore

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


def run(*args: str, code: int = DONE) -> Result:
    result = CliRunner().invoke(app, ["recommend", *args])
    assert result.exit_code == code, (args, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result  # type: ignore[no-any-return]


def test_a_table_and_a_choice_for_each_level(documents: LocalStore) -> None:
    result = run("a.txt", "--recipes", "lossless,int8-blockwise,kivi:bits=4:recent=0")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["candidate", "bits"]
    assert any(line.startswith("* lossless ") for line in lines)
    assert [line.split(":")[0] for line in lines if line.startswith(("exact", "safe", "small"))] == [
        "exact",
        "safe",
        "small",
    ]
    assert f"  kvtool compress a.txt --recipe lossless --store {documents.root} --model" in result.stdout
    assert "4 candidates, raw among them, on 1 segments" in result.stderr


def test_json_has_the_evaluation_and_the_choices() -> None:
    result = json.loads(run("a.txt", "--recipes", "lossless", "--json").stdout)
    assert [one["level"] for one in result["recommended"]] == ["exact", "safe", "small"]
    assert {one["candidate"] for one in result["recommended"]} == {"lossless"}
    assert [one["name"] for one in result["candidates"]] == ["raw", "lossless"]
    assert result["evaluation"]["candidates"][1]["kl"]["value"] == 0


def test_what_is_left_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
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
        raise CodecError(f"{self.name} needs even heads")

    monkeypatch.setattr(recommend, "CANDIDATES", ("nf4",))
    monkeypatch.setattr(Coded, "restore", refuse)
    result = kvtool.recommend(documents, "a.txt", model=lively, scope=TINY)
    assert [one["name"] for one in result["candidates"]] == ["raw"]
    assert [one["candidate"] for one in result["recommended"]] == ["raw"] * 3
    assert any("nf4 is left out" in note for note in result["evaluation"]["notes"])
    assert "cannot be used with" in run("a.txt", "--recipes", "nf4", code=USAGE).stderr


def test_a_recipe_without_its_calibration_is_refused_by_name() -> None:
    assert "needs a calibration" in run("--recipes", "klt", code=USAGE).stderr
