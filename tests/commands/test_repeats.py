"""A command that has nothing to do says so without torch or a model; whatever has changed is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtool.system import run_memory

Cli = Callable[..., Any]
PREFILL, COMPRESS = ("prefill", "docs", "c.txt"), ("compress", "--recipe", "kivi", "--bits", "4")

IMPORTED = """
import sys
from kvtool.cli import app
try:
    app(sys.argv[1:])
finally:
    print("heavy:", *{"torch", "transformers", "numba"} & sys.modules.keys(), file=sys.stderr)
"""


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the command of each run that went past its memory."""
    recalled = run_memory.recall
    commands: list[str] = []

    def recall(command: Any, inputs: Any) -> Any:
        outcome = recalled(command, inputs)
        if outcome is None:
            commands.append(command["command"])
        return outcome

    monkeypatch.setattr(run_memory, "recall", recall)
    return commands


def heavy_imports(*args: str) -> str:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *args], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1]


def test_a_pipeline_with_nothing_to_do_imports_neither_torch_nor_transformers(cli: Cli) -> None:
    first = [cli(*command).stderr for command in (PREFILL, COMPRESS)]
    assert "prefilled 3 documents" in first[0]
    for command in (PREFILL, COMPRESS, ("ls",)):
        assert heavy_imports(*command) == "heavy:"


def test_a_repetition_prints_what_the_whole_run_prints(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("docs/latin.txt").write_bytes(b"caf\xe9 " * 20)
    for command in (PREFILL, COMPRESS):
        cli(*command)
        remembered = cli(*command), json.loads(cli(*command, "--json").stdout)
        with monkeypatch.context() as patch:
            patch.setattr(run_memory, "recall", lambda *_: None)
            whole = cli(*command), json.loads(cli(*command, "--json").stdout)
        for of, value in (remembered, whole):
            assert not of.stdout
            value["seconds"] = 0
        assert remembered[1] == whole[1]
        assert remembered[0].stderr.splitlines()[1:] == whole[0].stderr.splitlines()[1:]
    assert "latin.txt" in cli(*PREFILL).stderr


@pytest.mark.parametrize("command", [PREFILL, COMPRESS], ids=["prefill", "compress"])
def test_what_is_unchanged_is_not_looked_at_again(command: Any, cli: Cli, loads: list[str]) -> None:
    cli(*PREFILL)
    cli(*COMPRESS)
    loads.clear()
    cli(*command)
    assert not loads
    Path("docs/a.md").write_text("Something else.\n")
    cli(*command)
    assert loads == (["prefill"] if command == PREFILL else [])


def change_file() -> None:
    Path("docs/a.md").write_text("Something else entirely.\n")


def add_file() -> None:
    Path("docs/new.md").write_text("One more.\n")


def lose_artifact() -> None:
    next(Path("kv-store/artifacts").rglob("*.safetensors")).unlink()


def touch_model() -> None:
    os.utime(Path(os.environ["KVTOOL_MODEL"]) / "config.json")


@pytest.mark.parametrize(
    "change", [change_file, add_file, lose_artifact, touch_model], ids=lambda f: f.__name__
)
def test_whatever_changes_is_noticed(change: Callable[[], None], cli: Cli, loads: list[str]) -> None:
    cli(*PREFILL)
    loads.clear()
    change()
    for _ in range(2):
        cli(*PREFILL)
    assert loads == ["prefill"]


def test_other_options_are_another_command(cli: Cli, loads: list[str]) -> None:
    cli(*PREFILL)
    loads.clear()
    assert "another prefix" in cli(*PREFILL, "--system", "Be brief.", code=1).stderr
    assert loads == ["prefill"]


def test_a_removed_document_is_prefilled_again(cli: Cli, loads: list[str]) -> None:
    cli(*PREFILL)
    cli(*COMPRESS)
    loads.clear()
    cli("rm", "docs/a.md")
    assert "prefilled 1 documents" in cli(*PREFILL).stderr
    assert "compressed 1 documents" in cli(*COMPRESS).stderr
    assert loads == ["prefill", "compress"]


def test_what_failed_is_tried_again(cli: Cli, loads: list[str]) -> None:
    Path("docs/bad.md").write_bytes(b"\x00\x01\x02")
    for _ in range(2):
        assert "bad.md" in cli(*PREFILL, code=3).stderr
    assert loads == ["prefill", "prefill"]


def test_another_writer_in_between_is_not_forgotten(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that someone replaces just after a run is not what that run left."""
    import kvtool.prefilling.inputs as module

    read = module.prefill_inputs
    calls: list[Any] = []

    def replaced(paths: Any, settings: Any) -> Any:
        calls.append(paths)
        if len(calls) == 2:
            Path("docs/a.md").write_text("Replaced.\n")
            monkeypatch.setattr(module, "prefill_inputs", read)
            cli(*PREFILL)
        return read(paths, settings)

    monkeypatch.setattr(module, "prefill_inputs", replaced)
    cli(*PREFILL)
    Path("docs/a.md").write_text("Replaced again.\n")
    assert "prefilled 1 documents" in cli(*PREFILL).stderr


def test_an_unwritable_cache_directory_costs_time_only(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", "/dev/null/cache")
    cli(*PREFILL)
    assert "3 were there already" in cli(*PREFILL).stderr


def test_a_broken_memory_is_none(cli: Cli, loads: list[str]) -> None:
    cli(*PREFILL)
    loads.clear()
    for file in (Path(os.environ["KVTOOL_CACHE_DIR"]) / "runs").iterdir():
        file.write_text("[]")
    assert "3 were there already" in cli(*PREFILL).stderr
    assert loads == ["prefill"]
