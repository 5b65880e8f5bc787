"""kvtool ls: its JSON, and a manifest that cannot be read."""

from __future__ import annotations

import json

from kvtool.errors import GATE, PARTLY
from kvtool.store.local import LocalStore
from tests.commands.conftest import THREE, Cli, typed


def test_ls(cli: Cli, store: LocalStore) -> None:
    rows = json.loads(cli("ls", "--json").stdout)
    assert [row["name"] for row in rows] == THREE
    assert typed(rows[0]) == {
        "name": "str",
        "segments": "int",
        "tokens": "int",
        "model": "str",
        "blend": "bool",
        "variants": {"raw": "int"},
    }
    assert rows[0]["variants"]["raw"] == store.size("c.txt")
    lines = cli("ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == THREE


def test_ls_goes_on_past_a_broken_manifest(cli: Cli, store: LocalStore) -> None:
    (store.root / "manifests" / "c.txt.json").write_bytes(b"{")
    result = cli("ls", "--json", code=PARTLY)
    assert [row["name"] for row in json.loads(result.stdout)] == THREE[1:]
    assert "c.txt.json: is not a manifest" in result.stderr
    cli("verify", code=GATE)
