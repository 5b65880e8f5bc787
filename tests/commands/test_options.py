"""Commands get settings for the flags that they share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pytest
import typer
from typer.testing import CliRunner

from kvtool.commands.options import AsJson, ModelFlags, StoreFlags, given, with_settings
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.config import Settings


@with_settings(ModelFlags)
def command(
    name: Annotated[str, typer.Argument()], count: int = 1, *, settings: Settings, as_json: AsJson = False
) -> str:
    """Help of the command."""
    return f"{name} {count} {settings.store} {settings.model} {settings.dtype} {as_json}"


@with_settings(StoreFlags)
def store_command(*, settings: Settings) -> Path:
    return settings.store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flags_become_settings_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTOOL_MODEL", "named")
    assert command("a", 2, store=Path("s"), as_json=True) == "a 2 s named auto True"
    assert command("a", model="other", dtype="float16") == "a 1 kv-store other float16 False"
    assert store_command() == Path("kv-store")


def test_a_value_of_the_wrong_kind_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="setting dtype is 'int8'"):
        command("a", dtype="int8")


def test_typer_sees_the_flags_in_place_of_settings() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(command)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert "Help of the command." in shown
    options = [word for word in shown.split() if word.startswith("--")]
    shared = ["--store", "--model", "--device", "--dtype", "--load-in", "--adapter"]
    assert options == ["--count", *shared, "--json", "--help"]


def test_a_store_command_has_no_flags_of_a_model() -> None:
    with pytest.raises(TypeError, match="model"):
        store_command(model="other")


def test_given_leaves_out_what_is_none() -> None:
    assert given(a=None, b=0, c="") == {"b": 0, "c": ""}
