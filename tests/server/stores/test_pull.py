"""kvtool pull: documents from a server into a store, over a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app as commands
from kvtool.codecs import Calibration
from kvtool.errors import DONE, FAILED, PARTLY, USAGE, UsageError
from kvtool.store.local import LocalStore
from kvtool.store.transfer.pull import pull
from tests.server.asking import THREE


def artifacts_in(root: Path) -> set[str]:
    return {path.stem for path in root.rglob("artifacts/*/*.safetensors")}


def run(*arguments: str, code: int = DONE) -> Result:
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result  # type: ignore[return-value]


def test_pull_copies_everything(
    url: str, documents: LocalStore, calibrated: Calibration, served: kvtool.Model
) -> None:
    assert "would pull 3 documents" in run("pull", url, "--store", "mine", "--dry-run").stderr
    assert not Path("mine").exists()
    result = json.loads(run("pull", url, "--store", "mine", "--json").stdout)
    assert set(result) == {"url", "store", "dry_run", "pulled", "unchanged", "problems", "bytes"}
    assert result["pulled"] == THREE
    mine = LocalStore("mine")
    assert dict(mine) == dict(documents)
    assert artifacts_in(mine.root) == artifacts_in(documents.root)
    assert result["bytes"] == sum(path.stat().st_size for path in mine.root.glob("artifacts/*/*"))
    assert mine.calibrations[calibrated.digest] == calibrated
    run("verify", "--store", "mine")
    mine.load("docs/a.txt", served, "centred")
    again = run("pull", url, "--store", "mine")
    assert "pulled 0 documents, 0 B; 3 were there already → mine" in again.stderr


def test_pull_takes_one_variant_and_later_another(
    url: str, counted: Any, documents: LocalStore, calibrated: Calibration
) -> None:
    run("pull", url, "docs/a.txt", "--variant", "centred", "--store", "mine")
    mine = LocalStore("mine")
    assert list(mine) == ["docs/a.txt"]
    assert mine["docs/a.txt"].variants == ["centred"]
    assert len(artifacts_in(mine.root)) == 2, "the prefix and the segment"
    counted.requests.clear()
    run("pull", url, "docs/a.txt", "--store", "mine")
    assert mine["docs/a.txt"] == documents["docs/a.txt"]
    assert counted.requests["artifacts"] == 1
    assert "has no variant 'kivi' there" in run("pull", url, "--variant", "kivi", code=FAILED).stderr
    partly = run("pull", url, "docs/b.txt", "docs/z.txt", "--store", "mine", code=PARTLY).stderr
    assert "docs/z.txt: is not in the store" in partly


def test_pull_brings_what_was_collected(url: str, documents: LocalStore, served: kvtool.Model) -> None:
    kvtool.prefill(["docs/a.txt"], model=served, store=documents, collect=["h2o"])
    mine = LocalStore("mine")
    pull(kvtool.Store(url), mine)
    assert kvtool.compress(mine, "docs/a.txt", recipe="h2o", model=lambda: served).compressed == [
        "docs/a.txt"
    ]
    assert mine["docs/a.txt"].segments[0].variants["inputs"].recipe == {"inputs": ["received"]}


def test_pull_refuses_what_differs_unless_told(url: str, documents: LocalStore, served: kvtool.Model) -> None:
    mine = LocalStore("mine")
    pull(kvtool.Store(url), mine)
    Path("docs/a.txt").write_text("Another text of the same name.")
    kvtool.prefill(["docs/a.txt"], model=served, store=mine)
    kvtool.compress(mine, ["docs/b.txt"], recipe="lossless")
    before = mine["docs/a.txt"]
    report = pull(kvtool.Store(url), mine)
    assert report.unchanged == THREE[1:], "another variant beside does not matter"
    assert [str(error) for error in report.problems] == [
        "docs/a.txt: its text, model or prefix is another in mine than where it comes from; --replace takes that one"
    ]
    assert mine["docs/a.txt"] == before
    assert pull(kvtool.Store(url), mine, replace=True).copied == ["docs/a.txt"]
    assert mine["docs/a.txt"] == documents["docs/a.txt"]
    assert mine["docs/b.txt"].variants == ["raw", "lossless"]


def test_another_artifact_of_a_variant_is_refused_unless_told(url: str, documents: LocalStore) -> None:
    kvtool.compress(documents, ["docs/a.txt"], recipe="kivi", bits=4, name="small")
    mine = LocalStore("mine")
    pull(kvtool.Store(url), mine, ["docs/a.txt"])
    kvtool.compress(documents, ["docs/a.txt"], recipe="kivi", bits=2, name="small", replace=True)
    report = pull(kvtool.Store(url), mine, ["docs/a.txt"])
    assert "its variant small is another in mine" in str(report.problems[0])
    assert pull(kvtool.Store(url), mine, ["docs/a.txt"], replace=True).copied == ["docs/a.txt"]
    assert mine["docs/a.txt"] == documents["docs/a.txt"]


def test_an_interrupted_pull_goes_on(url: str, counted: Any, documents: LocalStore) -> None:
    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        if report.nbytes > report.nbytes_total / 2:
            raise Stop

    mine = LocalStore("mine")
    with pytest.raises(Stop):
        pull(kvtool.Store(url), mine, on_progress=stop)
    have = artifacts_in(mine.root)
    assert 0 < len(have) < 4
    assert not list(mine.root.rglob(".tmp-*"))
    assert all(mine.open(name).verify() is None for name in mine)
    counted.requests.clear()
    finished = list(mine)
    report = pull(kvtool.Store(url), mine)
    assert report.unchanged == finished
    assert report.copied == [name for name in THREE if name not in finished]
    assert counted.requests["artifacts"] == 4 - len(have)
    assert dict(mine) == dict(documents)


def test_pull_wants_a_server_and_a_directory(url: str, documents: LocalStore) -> None:
    assert "expected http://HOST:PORT" in run("pull", "kv-store", code=USAGE).stderr
    assert "is read only; name a directory" in run("pull", url, "--store", url, code=USAGE).stderr
    with pytest.raises(UsageError, match="is not a server"):
        pull(documents, LocalStore("mine"))
