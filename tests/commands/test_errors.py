"""What goes wrong: one line of error, the exit code, and nothing on stdout."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvtool.cli import app
from kvtool.errors import FAILED, USAGE
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.local import LocalStore
from tests.commands.conftest import Cli, error_of


@pytest.mark.parametrize(
    "command",
    [
        ["ls"], ["show", "c.txt"], ["verify"], ["gc"], ["gc", "--dry-run"], ["rm", "c.txt"], ["compress"], ["calibrate"],
        ["ask", "What?", "--doc", "c.txt"], ["eval"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_store_that_does_not_exist_is_said_to(cli: Cli, corpus: Path, command: list[str]) -> None:
    error = error_of(cli(*command, "--store", "none", code=FAILED))
    assert f"none: there is no store at {corpus / 'none'}; run kvtool prefill first" in error
    assert not (corpus / "none").exists()


def test_the_store_of_a_folder_above_is_named(
    cli: Cli, store: LocalStore, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus / "docs")
    assert f"there is one at {corpus / 'kv-store'}" in error_of(cli("ls", code=FAILED))


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "docs/a.mb"],
        ["verify", "docs/a.mb"],
        ["rm", "docs/a.mb"],
        ["compress", "docs/a.mb"],
        ["ask", "What?", "--doc", "docs/a.mb"],
        ["ask", "What?", "--doc", "c.txt", "--doc", "docs/a.mb"],
    ],
    ids=lambda a: a[0],
)
def test_an_unknown_document_suggests_near_names(cli: Cli, store: LocalStore, arguments: list[str]) -> None:
    assert "docs/a.mb: is not in the store kv-store; did you mean docs/a.md" in error_of(
        cli(*arguments, code=FAILED)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ls", "--store", "docs"], "docs: is not a kvtool store"),
        (["ls", "--store", "ftp://host"], "store ftp://host: expected http://HOST:PORT"),
        (["ask", "What?", "--doc", "c.txt", "--variant", "kivi"], "run kvtool compress c.txt --recipe kivi"),
        (["ask", "What?", "--doc", "c.txt", "--segment", "7"], "no segment 7"),
        (["ask", "What?", "--doc", "c.txt", "--segment", "-1"], "no segment -1"),
        (["ask", "What?", "--doc", "c.txt", "--model", "nowhere"], "nowhere"),
        (["ask", "What?", "--doc", "c.txt", "--dtype", "bfloat16"], "its dtype is float32"),
        (["ask", "What?", "--doc", "c.txt", "--dtype", "bfloat16", "--no-cache"], "its dtype is float32"),
        (["ask", "What?", "--doc", "../c.txt"], "is not a document name"),
        (["prefill", "nothing.md"], "nothing.md"),
        (["prefill", "docs", "--model", "nowhere.gguf"], "no such GGUF file"),
        (["prefill", "docs", "--device", "cuda"], "no CUDA GPU"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_failures(
    cli: Cli, store: LocalStore, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code = USAGE if "ftp://host" in arguments else FAILED
    result = cli(*arguments, code=code)
    assert says in result.stderr
    error_of(result)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["prefill"],
        ["ask"],
        ["ask", "What?"],
        ["ls", "--colour"],
        ["ask", "\udcff", "--doc", "c.txt"],
        ["ask", "What?", "\udcff", "--doc", "c.txt"],
        ["ask", "What?", "--doc", "c.txt", "--max-tokens", "0"],
        ["ask", "What?", "--doc", "c.txt", "--temperature", "-1"],
        ["ask", "What?", "--doc", "c.txt", "--temperature", "1", "--top-p", "0"],
        ["ask", "What?", "--doc", "c.txt", "--temperature", "1", "--min-p", "nan"],
        ["ask", "What?", "--doc", "c.txt", "--temperature", "nan"],
        ["ask", "What?", "--doc", "c.txt", "--top-k", "3"],
        ["ask", "What?", "--doc", "c.txt", "--recompute", "1.5"],
        ["ask", "What?", "--doc", "c.txt", "--recompute", "nan"],
        ["ask", "What?", "--doc", "c.txt", "--policy", "evne"],
        ["ask", "What?", "--doc", "c.txt", "--policy", "ape", "--recompute", "0.3"],
        ["ask", "What?", "--doc", "c.txt", "--trace", "trace.json", "--no-cache"],
        ["compress", "--recipe", "gzip"],
        ["compress", "--recipe", "kivi", "--bits", "99"],
        ["compress", "--name", "raw"],
        ["prefill", "docs", "--system", "x", "--no-prefix"],
        ["prefill", "docs", "--segment-tokens", "0"],
        ["prefill", "docs", "--segment-tokens", "9999"],
        ["prefill", "docs", "--step-tokens", "0"],
        ["prefill", "docs", "--dtype", "int8"],
        ["prefill", "docs", "--load-in", "3bit"],
    ],
    ids=" ".join,
)
def test_usage(cli: Cli, store: LocalStore, arguments: list[str]) -> None:
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    result = cli(*arguments, code=USAGE)
    assert result.stdout == "" or not arguments
    assert result.stderr or not arguments
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


def test_an_unexpected_error_is_one_line_too(
    store: LocalStore, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalCatalog, "__iter__", lambda _: 1 / 0)
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == FAILED
    assert result.stderr.splitlines() == [
        "kvtool: ZeroDivisionError: division by zero. This is not expected; run with kvtool --debug for a traceback"
    ]
    traced = CliRunner().invoke(app, ["--debug", "ls"])
    assert traced.exit_code == FAILED
    assert traced.stderr.startswith("Traceback (most recent call last):\n")
    assert traced.stderr.endswith("kvtool: ZeroDivisionError: division by zero. This is not expected\n")


@pytest.mark.parametrize(
    "command",
    [
        ["prefill", "c.txt", "--model", "embedded"],
        ["ls", "--store", "http://127.0.0.1:9"],
        ["prefill", "c.txt"],
    ],
    ids=" ".join,
)
def test_a_cache_directory_that_cannot_be_written(
    cli: Cli, corpus: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere, but not below a file.
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(corpus / "c.txt" / "cache"))
    if command == ["prefill", "c.txt"]:
        cli(*command)
        return
    error = error_of(cli(*command, code=FAILED))
    if "embedded" in command:
        assert f"{corpus}/c.txt/cache/converted" in error
        assert "set KVTOOL_CACHE_DIR to a directory that is writable" in error


def test_a_path_that_the_system_refuses_is_an_error_of_the_user(
    cli: Cli, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "kv-store/manifests")

    monkeypatch.setattr(LocalCatalog, "__iter__", refused)
    assert "kv-store/manifests: Permission denied; check the path" in error_of(cli("ls", code=FAILED))


def test_an_error_of_many_lines_is_shown_as_one(cli: Cli, store: LocalStore) -> None:
    assert "\\n" in error_of(cli("show", "../a\nb", code=FAILED))


def test_a_full_disk(cli: Cli, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    Path("docs/new.md").write_text("New.")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kvtool.system.files.os.fsync", full)
    assert "the disk is full. What was stored before is safe" in error_of(cli("prefill", "docs", code=FAILED))
    assert "the disk is full" in cli("compress", "--recipe", "kivi", code=FAILED).stderr
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "command", [["ask", "What?", "--doc", "c.txt"], ["show", "c.txt"]], ids=lambda c: c[0]
)
def test_a_broken_artifact(cli: Cli, store: LocalStore, command: list[str]) -> None:
    path = store.path_of(store["c.txt"].segments[0].variants["raw"])
    path.write_bytes(path.read_bytes()[:-1])
    error = error_of(cli(*command, code=FAILED))
    assert str(path) in error
    assert "kvtool verify --remove takes broken artifacts out" in error
