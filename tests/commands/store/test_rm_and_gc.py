"""kvtool rm and kvtool gc: what is removed, and what is not."""

from __future__ import annotations

from pathlib import Path

from kvtool.errors import FAILED
from kvtool.store.local import LocalStore
from tests.commands.conftest import THREE, Cli, error_of


def test_rm_and_gc(cli: Cli, store: LocalStore) -> None:
    before = sorted(store.root.rglob("*"))
    assert "would remove c.txt" in cli("rm", "c.txt", "--dry-run").stderr
    assert sorted(store.root.rglob("*")) == before
    artifact = store.path_of(store["c.txt"].segments[0].variants["raw"])
    assert "freed 1 artifacts" in cli("rm", "c.txt").stderr
    assert not artifact.exists()
    assert list(store) == THREE[1:]
    store.remove("docs/a.md")
    unused = cli("gc", "--dry-run").stdout.splitlines()
    assert len(unused) == 1
    assert Path(unused[0]).exists()
    assert cli("gc").stdout == ""
    assert not Path(unused[0]).exists()
    cli("verify")


def test_rm_of_one_unknown_name_removes_none(cli: Cli, store: LocalStore) -> None:
    assert "docs/a.md" in error_of(cli("rm", "c.txt", "docs/a.mb", code=FAILED))
    assert list(store) == THREE
