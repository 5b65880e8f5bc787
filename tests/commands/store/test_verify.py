"""kvtool verify: what is broken is named, and removed if asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kvtool
from kvtool.errors import GATE
from kvtool.store.local import LocalStore
from tests.commands.conftest import Cli, error_of, typed


def test_verify(cli: Cli, store: LocalStore) -> None:
    assert json.loads(cli("verify", "--json").stdout) == {
        "intact": 4,
        "broken": {},
        "removed": [],
        "outdated": {},
    }
    variant = store["c.txt"].segments[0].variants["raw"]
    path = store.path_of(variant)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    report = json.loads(cli("verify", "--json", code=GATE).stdout)
    assert report["intact"] == 3
    assert report["broken"].keys() == {variant.artifact}
    assert typed(report["broken"][variant.artifact]) == dict.fromkeys(
        ["document", "subject", "reason", "remedy", "message"], "str"
    )
    assert report["broken"][variant.artifact]["document"] == "c.txt"
    assert report["removed"] == []
    assert path.exists()
    result = cli("verify", "--remove", code=GATE)
    assert str(path) in error_of(result)
    assert "3 artifacts are intact, 1 is not, 1 removed" in result.stderr
    assert not path.exists()
    cli("verify", "docs/a.md")
    cli("verify", code=GATE)
    cli("prefill", "docs", "c.txt")
    assert path.read_bytes() == data
    cli("verify")


def test_verify_removes_only_what_is_broken(cli: Cli, tiny: kvtool.Model) -> None:
    # A newer kvtool may read what this one cannot.
    with pytest.MonkeyPatch.context() as newer:
        newer.setattr("kvtool.artifact.write.FORMAT", 2)
        kvtool.prefill(["c.txt"], model=tiny, store=LocalStore("newer"))
    before = sorted(Path("newer").rglob("*"))
    assert "upgrade kvtool" in cli("verify", "--remove", "--store", "newer", code=GATE).stderr
    assert sorted(Path("newer").rglob("*")) == before
