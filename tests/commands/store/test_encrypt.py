"""kvtool encrypt: a store is encrypted, and says whose key is missing."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from kvtool.errors import FAILED, USAGE
from kvtool.store.local import LocalStore
from tests.commands.conftest import Cli, error_of


def test_encrypt(cli: Cli, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kvtool keygen --encryption NAME makes one" in error_of(cli("encrypt", code=USAGE))
    made = json.loads(cli("keygen", "ours", "--encryption", "--json").stdout)
    assert stat.S_IMODE(Path(made["private"]).stat().st_mode) == 0o600
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", made["private"])
    shown = cli("show", "c.txt").stdout
    assert f"would encrypt 4 of 4 files with key {made['id']}" in cli("encrypt", "--dry-run").stderr
    assert f"encrypted 4 of 4 files with key {made['id']}" in cli("encrypt").stderr
    assert json.loads(cli("encrypt", "--json").stdout)["encrypted"] == 0
    assert "4 artifacts are intact" in cli("verify").stderr
    assert cli("show", "c.txt").stdout == shown
    listed = cli("ls").stdout
    monkeypatch.delenv("KVTOOL_ENCRYPTION_KEY")
    assert cli("ls").stdout == listed
    # What cannot be read now is not broken, and not taken out.
    locked = error_of(cli("verify", "--remove", code=FAILED))
    assert f"key {made['id']}: is needed for this encrypted store, and none is given; name its file" in locked
    assert len(store.artifact_files()) == 4
    assert f"is encrypted with key {made['id']}, and none is given" in error_of(
        cli("ask", "What?", "--doc", "c.txt", code=FAILED)
    )
    assert f"key {made['id']}" in cli("compress", "--recipe", "nf4", code=FAILED).stderr
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", "nonsense")
    assert "KVTOOL_ENCRYPTION_KEY: a text of 8 characters: cannot be read" in error_of(
        cli("verify", code=FAILED)
    )


def test_a_new_store_can_be_encrypted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("keygen", "ours", "--encryption")
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", "ours.key")
    cli("encrypt", "--store", "new")
    cli("prefill", "c.txt", "--store", "new")
    files = LocalStore("new").artifact_files()
    assert len(files) == 2
    assert all(file.read_bytes().startswith(b"kvseal") for file in files)
    assert "is not a directory" in error_of(cli("encrypt", "--store", "http://127.0.0.1:1", code=FAILED))
