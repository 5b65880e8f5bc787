"""kvtool eval: exit codes, what goes to stdout, the page, and what bad input gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app
from kvtool.errors import DONE, GATE, INTERRUPTED, USAGE
from kvtool.evaluation.run import Runner
from kvtool.store.local import LocalStore

Cli = Callable[..., Result]
KL = ("--metrics", "kl", "--context", "300", "--tokens", "32")


@pytest.fixture
def cli(documents: LocalStore, lively: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVTOOL_STORE", str(documents.root))
    monkeypatch.setenv("KVTOOL_MODEL", str(lively.directory))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")

    def cli(*args: str, code: int = DONE) -> Result:
        result = CliRunner().invoke(app, ["eval", *args])
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
        return result  # type: ignore[return-value]

    return cli


def test_the_table_is_data_and_the_rest_is_not(cli: Cli) -> None:
    result = cli("--recipes", "kivi:bits=4,nf4", *KL)
    names = [line.split()[0] for line in result.stdout.splitlines() if line]
    assert {"raw", "kivi:bits=4", "nf4"} <= set(names)
    assert "3 candidates, raw among them, on 3 segments" in result.stderr


def test_json_is_the_evaluation(cli: Cli) -> None:
    found = json.loads(cli("a.txt", "--recipes", "kivi:bits=4:recent=32", *KL, "--json").stdout)
    assert found["format"] == 1
    assert [c["name"] for c in found["candidates"]] == ["raw", "kivi:bits=4:recent=32"]
    assert found["candidates"][0]["kl"]["value"] == 0.0
    assert found["candidates"][1]["kl"]["value"] > 0
    assert [d["name"] for d in found["documents"]] == ["a.txt"]
    assert any("come from one document" in note for note in found["notes"])


def test_a_gate_that_is_kept_and_one_that_is_not(cli: Cli) -> None:
    cli("--recipes", "kivi:bits=8", *KL, "--max-kl", "5", "--min-ratio", "1")
    result = cli("--recipes", "kivi:bits=2,kivi:bits=8", *KL, "--max-kl", "1e-9", "--json", code=GATE)
    assert "gate FAILED: kivi:bits=2: KL" in result.stderr
    assert "gate FAILED: kivi:bits=8: KL" in result.stderr
    assert [check["passed"] for check in json.loads(result.stdout)["gate"]] == [False, False]


def test_a_smaller_ratio_than_before_is_caught(cli: Cli, tmp_path: Path) -> None:
    before = json.loads(cli("--recipes", "kivi:bits=4", *KL, "--json").stdout)
    (tmp_path / "same.json").write_text(json.dumps(before))
    cli("--recipes", "kivi:bits=4", *KL, "--baseline", "same.json", "--max-ratio-loss", "0")
    before["candidates"][1]["ratio"] *= 1.5
    (tmp_path / "better.json").write_text(json.dumps(before))
    loss = ("--baseline", "better.json", "--max-ratio-loss", "0.1")
    result = cli("--recipes", "kivi:bits=4", *KL, *loss, code=GATE)
    assert "gate FAILED: kivi:bits=4: ratio loss 0.333, limit 0.1" in result.stdout


def test_the_page_is_written_once(cli: Cli, tmp_path: Path) -> None:
    cli("--recipes", "nf4", *KL, "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "nf4" in page
    refused = cli("--recipes", "nf4", *KL, "--html", "page.html", code=USAGE)
    assert "page.html: is there already" in refused.stderr
    cli("--recipes", "nf4", *KL, "--html", "page.html", "--replace")


def test_a_dry_run_says_the_plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "measure", lambda *_: pytest.fail("something was measured"))
    result = cli("--recipes", "nf4", *KL, "--dry-run")
    assert "2 candidates, raw among them, on 3 segments" in result.stderr
    assert result.stdout == ""


def test_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "measure", stop)
    assert "goes on from there" in cli("--recipes", "nf4", *KL, code=INTERRUPTED).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes", "kiwi"], "kiwi"),
        (["--recipes", "nf4", "--metrics", "speed"], "--metrics speed: expected some of kl, retrieval"),
        (["--recipes", "nf4", "--lengths", "long"], "--lengths long: is no number"),
        (["--recipes", "nf4", "--lengths", "0"], "--lengths 0: expected at least 1"),
        (["--recipes", "nf4", "--tokens", "0"], "--tokens 0: expected at least 1"),
        (["--recipes", "nf4", "--max-ratio-loss", "0.1"], "--baseline"),
        (
            ["--recipes", "nf4", "--baseline", "nowhere.json", "--max-ratio-loss", "0.1"],
            "nowhere.json: cannot be read",
        ),
        (["--recipes", "nf4", "--questions", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--recipes", "nf4", "--html", "nowhere/page.html"], "nowhere is no directory"),
        ([], "has no variants beside raw"),
    ],
)
def test_bad_input_is_named(cli: Cli, arguments: list[str], message: str) -> None:
    result = cli(*arguments, code=USAGE)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert result.stdout == ""
