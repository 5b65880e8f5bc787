"""What every command's --help says, and --version."""

from __future__ import annotations

import re

import pytest
import typer.main

import kvtool
from kvtool.cli import app
from kvtool.errors import EXIT_CODES
from tests.commands.conftest import Cli
from tests.commands.manners.conftest import commands_of

COMMANDS = sorted([*commands_of(typer.main.get_command(app)), "connector"])


def test_every_command_is_known() -> None:
    assert set(COMMANDS) >= {"ask", "compress", "gc", "ls", "prefill", "recipes", "rm", "show", "verify"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_documents_the_exit_codes(cli: Cli, command: str) -> None:
    text = cli(*command.split(), "--help").stdout
    assert EXIT_CODES in " ".join(text.split())


@pytest.mark.parametrize("command", ["ls", "show", "verify", "prefill", "compress", "ask", "recipes"])
def test_commands_that_print_data_have_json(cli: Cli, command: str) -> None:
    assert "--json" in cli(command, "--help").stdout


@pytest.mark.parametrize("command", ["prefill", "rm", "gc"])
def test_commands_that_write_over_or_delete_have_a_dry_run(cli: Cli, command: str) -> None:
    assert "--dry-run" in cli(command, "--help").stdout


def test_help_says_what_is_the_default(cli: Cli) -> None:
    shown = cli("compress", "--help").stdout
    assert "(default: all)" in shown
    assert "(default: klt;" in shown
    assert "(default: kv-store)" in shown


def test_version(cli: Cli) -> None:
    printed = cli("--version").stdout
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", printed)
    assert printed == f"{kvtool.__version__}\n"


@pytest.mark.parametrize(
    ("command", "flag"),
    [("compress", "--source"), ("ask", "--separator"), ("serve-cache", "--max-load-seconds")],
)
def test_flags_have_the_names_of_the_changelog(cli: Cli, command: str, flag: str) -> None:
    assert f" {flag} " in cli(command, "--help").stdout
