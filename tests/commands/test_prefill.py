"""kvtool prefill: its JSON, its dry run, and runs that are done in part."""

from __future__ import annotations

import json
from pathlib import Path

from kvtool import Store
from kvtool.errors import FAILED, PARTLY
from tests.commands.conftest import THREE, Cli, error_of, typed


def test_prefill(cli: Cli) -> None:
    first = json.loads(cli("prefill", "docs", "c.txt", "--json").stdout)
    assert typed(first) == {
        "store": "str",
        "model": {"name": "str", "fingerprint": "str"},
        "dry_run": "bool",
        "prefilled": ["str"],
        "unchanged": [],
        "replaced": {},
        "averaged": [],
        "without_neighbours": [],
        "problems": [],
        "tokens": "int",
        "seconds": "float",
    }
    assert sorted(first["prefilled"]) == THREE
    again = json.loads(cli("prefill", "docs", "c.txt", "--json").stdout)
    assert again["prefilled"] == []
    assert sorted(again["unchanged"]) == THREE
    assert again["tokens"] == 0
    assert "3 were there already" in cli("prefill", "docs", "c.txt").stderr


def test_prefill_dry_run_writes_nothing(cli: Cli, corpus: Path) -> None:
    before = sorted(corpus.rglob("*"))
    result = cli("prefill", "docs", "c.txt", "--dry-run")
    assert sorted(result.stdout.splitlines()) == THREE
    assert sorted(corpus.rglob("*")) == before


def test_a_flag_overrules_the_prefix_of_a_file(cli: Cli) -> None:
    Path("kvtool.toml").write_text('system = "Answer briefly."')
    cli("prefill", "c.txt", "--no-prefix")
    assert Store("kv-store")["c.txt"].prefix["origin"]["kind"] == "none"
    Path("prefix.txt").write_text("Before.")
    cli("prefill", "c.txt", "--prefix-file", "prefix.txt", "--replace")
    assert Store("kv-store")["c.txt"].prefix["origin"]["kind"] == "text"


def test_done_in_part(cli: Cli) -> None:
    Path("docs/empty.md").write_text("")
    result = cli("prefill", "docs", "missing.md", "--json", code=PARTLY)
    report = json.loads(result.stdout)
    assert sorted(report["prefilled"]) == THREE[1:]
    assert len(report["problems"]) == 2
    for problem in report["problems"]:
        assert problem.keys() == {"subject", "reason", "remedy", "message"}
        assert f"error: {problem['message']}" in result.stderr
    assert result.stderr.count("error: ") == 2
    assert "docs/empty.md" in result.stderr
    assert list(Store("kv-store")) == THREE[1:]


def test_nothing_done_is_failed(cli: Cli, corpus: Path) -> None:
    Path("empty.md").write_text(" \n")
    assert "empty.md" in error_of(cli("prefill", "empty.md", code=FAILED))
    assert not (corpus / "kv-store").exists()
