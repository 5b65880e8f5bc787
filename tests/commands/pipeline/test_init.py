"""A first kvtool.toml, which kvtool build takes as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kvtool.errors import FAILED, USAGE
from tests.commands.conftest import Cli, error_of


def test_a_first_file_is_one_that_builds(corpus: Path, cli: Cli) -> None:
    printed = cli("init", "--dry-run").stdout
    assert not (corpus / "kvtool.toml").exists()
    assert "2 documents" in cli("init").stderr
    text = (corpus / "kvtool.toml").read_text()
    assert printed == text
    assert tomllib.loads(text)["build"]["documents"] == ["docs"]
    assert "would prefill 2 documents" in cli("build", "--dry-run").stderr


def test_a_file_that_is_there_stays(corpus: Path, cli: Cli) -> None:
    (corpus / "kvtool.toml").write_text('store = "kv"\n')
    assert "kvtool.toml: is there already; kvtool init --dry-run" in error_of(cli("init", code=USAGE))
    assert (corpus / "kvtool.toml").read_text() == 'store = "kv"\n'


def test_a_models_folder_and_documents_at_the_top(corpus: Path, cli: Cli) -> None:
    (corpus / "docs").rename(corpus / 'my "pages"')
    (corpus / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (corpus / "model" / name).write_text("{}")
    cli("init")
    table = tomllib.loads((corpus / "kvtool.toml").read_text())
    assert (table["model"], table["build"]["documents"]) == ("./model", ["."])


def test_a_folder_without_documents(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "has no documents" in error_of(cli("init", code=FAILED))
