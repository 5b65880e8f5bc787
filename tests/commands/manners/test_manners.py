"""Manners of every command, found by discovery: --quiet, --dry-run, pipes without escape codes, exit codes, --debug."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from kvtool.cli import app
from kvtool.commands import output
from kvtool.errors import GATE, USAGE
from tests.commands.manners.conftest import COMMANDS, EXAMPLES, Run, command_of

WRITES = {
    "prefill",
    "calibrate",
    "compress",
    "blend",
    "init",
    "build",
    "rm",
    "gc",
    "sign",
    "push",
    "pull",
    "install-model",
}
"""Commands that write or remove something that was not there for them alone, or that take long: with a --dry-run."""

DRY = [name for name in EXAMPLES if any("--dry-run" in p.opts for p in COMMANDS[command_of(name)].params)]
STORELESS = {"init", "demo", "schema", "keygen", "install-model"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is printed at once, and not after ten seconds."""
    monkeypatch.setattr(output.Bar, "EVERY", 0.0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_quiet_prints_data_and_nothing_else(run: Run, name: str) -> None:
    # What makes a check fail is no note.
    failures = "kvtool.lock: is missing" if name == "build check" else ""
    printed = run(name, "--quiet").stderr
    assert printed.startswith(failures)
    assert bool(printed) == bool(failures)


def test_quiet_is_of_one_command_and_keeps_errors(run: Run) -> None:
    assert run("rm", "--quiet").stderr == ""
    assert "would remove" in run("gc", "--dry-run").stderr
    missing = CliRunner().invoke(app, ["show", "docs/a.md", "-q"])
    assert missing.exit_code == 1
    assert missing.stderr.startswith("error: docs/a.md: ")


def test_quiet_says_which_limit_was_not_kept(run: Run) -> None:
    failing = [
        "eval",
        "docs/a.md",
        "--recipes",
        "kivi:bits=2:recent=0",
        "--metrics",
        "kl",
        "--max-kl",
        "1e-12",
    ]
    small = ["--context", "128", "--tokens", "16", "--json", "--quiet"]
    result = CliRunner().invoke(app, [*failing, *small])
    assert result.exit_code == GATE
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["gate FAILED"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_pipes_get_no_escape_codes(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor bars: a pipe is no terminal, whatever colours it could show."""
    monkeypatch.delenv("NO_COLOR")
    result = run(name)
    assert "\x1b" not in result.stdout + result.stderr
    assert "\r" not in result.stdout + result.stderr


def test_commands_that_write_have_a_dry_run() -> None:
    assert {command_of(name) for name in DRY} >= WRITES


@pytest.mark.parametrize("name", [name for name in DRY if name != "build check"])
def test_a_dry_run_changes_nothing(run: Run, name: str) -> None:
    run.prepare(name)
    before = run.files()
    result = run(name, "--dry-run")
    assert run.files() == before
    assert result.stdout or result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_is_2_and_says_so_in_a_line_or_two(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--frobnicate"])
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert "--frobnicate" in result.stderr


@pytest.mark.parametrize("name", [name for name in EXAMPLES if command_of(name) not in STORELESS])
@pytest.mark.parametrize("debug", [False, True])
def test_debug_adds_the_traceback_and_changes_nothing_else(
    run: Run, name: str, debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVTOOL_MODLE", "x")
    result = CliRunner().invoke(app, [*(["--debug"] if debug else []), *EXAMPLES[name]])
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert result.stderr.splitlines()[-1] == (
        "error: KVTOOL_MODLE: unknown variable in the environment; did you mean KVTOOL_MODEL?"
    )
    assert result.stderr.startswith("Traceback (most recent call last):") == debug
    assert len(result.stderr.splitlines()) == 1 or debug


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet(command: str) -> None:
    assert any("--quiet" in parameter.opts for parameter in COMMANDS[command].params)
