"""What the tests of commands share: kvtool run in the corpus's directory, and what is read from its output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvtool.cli import app
from kvtool.errors import DONE

THREE = ["c.txt", "docs/a.md", "docs/b.md"]
Cli = Callable[..., Result]


@pytest.fixture
def cli(corpus: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs kvtool in the corpus's directory, with the tiny model."""
    monkeypatch.setenv("KVTOOL_MODEL", str(tiny_dir))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")

    def cli(*args: str, code: int = DONE, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(app, args, input=stdin)
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
        assert "not expected" not in result.stderr
        return result

    return cli


def error_of(result: Result) -> str:
    """The one line of error that a failed command ends with; nothing on stdout."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    return lines[0]


def typed(value: object) -> object:
    """The shape of a JSON value: its keys and types."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(value[0])] if value else []
    return None if value is None else type(value).__name__
