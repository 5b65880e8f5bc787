"""kvtool prefill: its JSON, its dry run, and runs that are done in part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
        "collected": [],
        "problems": [],
        "warnings": [],
        "passed_over": {},
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
    Path("docs/binary.md").write_bytes(b"\0")
    result = cli("prefill", "docs", "missing.md", "--json", code=PARTLY)
    report = json.loads(result.stdout)
    assert sorted(report["prefilled"]) == THREE[1:]
    assert len(report["problems"]) == 2
    for problem in report["problems"]:
        assert problem.keys() == {"subject", "reason", "remedy", "message"}
        assert f"error: {problem['message']}" in result.stderr
    assert result.stderr.count("error: ") == 2
    assert "docs/binary.md" in result.stderr
    assert list(Store("kv-store")) == THREE[1:]


def test_empty_files_of_a_source_tree_do_not_end_a_pipeline(cli: Cli) -> None:
    Path("docs/__init__.py").write_text("")
    Path("docs/py.typed").write_text("\n")
    report = json.loads(cli("prefill", "docs", "--json").stdout)
    assert (report["problems"], report["passed_over"]) == ([], {"empty": 2})
    assert "passed over 2 empty files" in cli("prefill", "docs").stderr


def test_an_empty_file_that_is_named_is_an_error_though_a_walk_finds_it_too(cli: Cli) -> None:
    Path("docs/__init__.py").write_text("")
    for paths in (["docs", "docs/__init__.py"], ["docs/__init__.py", "docs"]):
        result = cli("prefill", *paths, "--dry-run", code=PARTLY)
        assert "docs/__init__.py: it is empty (0 bytes); expected a document with text" in result.stderr


def test_a_page_that_shrinks_to_its_title_is_a_warning(cli: Cli) -> None:
    Path("docs/app.html").write_text("<title>Opening hours</title><script>draw()</script>")
    result = cli("prefill", "docs", "--json")
    report = json.loads(result.stdout)
    assert "docs/app.html" in report["prefilled"]
    (warning,) = report["warnings"]
    assert "holds nothing but its title, in 51 characters" in warning["reason"]
    assert f"warning: {warning['message']}" in result.stderr
    assert "warning: " in cli("prefill", "docs").stderr


def test_an_encoding_that_was_guessed_is_said_and_can_be_set(cli: Cli) -> None:
    Path("name.txt").write_bytes("Łukasz".encode("cp1250"))
    result = cli("prefill", "name.txt", "--json")
    (warning,) = json.loads(result.stdout)["warnings"]
    assert f"warning: {warning['message']}" in result.stderr
    assert "its encoding was guessed: " in warning["reason"]
    assert json.loads(cli("prefill", "name.txt", "--json", "--encoding", "cp1250").stdout)["warnings"] == []


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        ([], "nothing, it is empty"),
        (["a.jpg", "b.jpg", ".hidden.md"], "2 .jpg, 1 hidden"),
        (["ignored.log", "store/kvtool-store.json"], "1 ignored, 1 store"),
        (["__init__.py"], "1 empty"),
        (["a.pem"], "1 excluded"),
    ],
)
def test_nothing_found_is_failed_and_says_what_was_passed_over(
    cli: Cli, corpus: Path, files: list[str], counts: str
) -> None:
    Path(".kvtoolignore").write_text("*.log")
    for file in ("", *files):
        path = Path("folder") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if file else path.mkdir()
    error = error_of(cli("prefill", "folder", "--exclude", "*.pem", code=FAILED))
    assert f"folder: no documents found; passed over: {counts}; check the path and the ignore rules" in error
    assert not (corpus / "kv-store").exists()


def test_nothing_done_is_failed(cli: Cli, corpus: Path) -> None:
    Path("empty.md").write_text(" \n")
    assert "empty.md" in error_of(cli("prefill", "empty.md", code=FAILED))
    assert not (corpus / "kv-store").exists()


def test_planning_is_shown_before_the_model_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtool.commands.output.Bar.EVERY", 0.0)
    Path("long.md").write_text("A row with some words.\n" * 400)
    lines = cli("prefill", "docs", "long.md").stderr.splitlines()
    planning = [line for line in lines if line.startswith("planning: ")]
    assert planning[0] == "planning: 0 of 3 documents"
    # A long document gives signs of life while it is cut.
    assert sum(line.startswith("planning: 2 of 3 documents, ") for line in planning) > 3
    assert lines.index(planning[-1]) < next(
        n for n, line in enumerate(lines) if line.startswith("prefilling: ")
    )


def test_what_recipes_need_is_collected(cli: Cli) -> None:
    assert "3 measured for recipes" in cli("prefill", "docs", "c.txt", "--collect", "h2o").stderr
    assert "measured" not in cli("prefill", "docs", "c.txt", "--collect", "h2o").stderr
    cli("verify")
    assert cli("gc").stdout == ""
    assert "inputs" in cli("show", "c.txt").stdout
    assert "measuring" not in cli("compress", "--recipe", "h2o", "--set", "keep=0.4").stderr
    # Its cache, what was collected, and the variant.
    assert "freed 3 artifacts" in cli("rm", "c.txt").stderr
