"""A command that has nothing to do says so without torch or a model; whatever has changed is noticed."""

from __future__ import annotations

import os
import re
import shutil
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


def printed(result: Any) -> list[str]:
    """The lines of a run's output, in order, without the time that it took."""
    output = re.sub(r"in \d+\.\d s", "", re.sub(r'"seconds": \S+', "", result.stdout + result.stderr))
    return [line for line in output.splitlines() if line]


def both(cli: Cli, monkeypatch: pytest.MonkeyPatch, *command: str) -> tuple[list[str], list[str]]:
    """What a repetition prints, and what the whole run does."""
    remembered = printed(cli(*command))
    with monkeypatch.context() as patch:
        patch.setattr(run_memory, "recall", lambda *_: None)
        return remembered, printed(cli(*command))


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_repetition_prints_what_the_whole_run_prints(
    flags: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("docs/latin.txt").write_bytes(b"caf\xe9 " * 20)
    # The longest of the documents, which is stored last, comes first.
    Path("docs/0.txt").write_text("A longer text. " * 60)
    for command in (PREFILL, COMPRESS):
        cli(*command)
        remembered, whole = both(cli, monkeypatch, *command, *flags)
        assert remembered == whole
    assert "latin.txt" in cli(*PREFILL).stderr


def test_a_setting_is_told_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "compress", "--bits", "12"
    cli(*PREFILL)
    assert "on a few segments" in cli(*command).stderr
    for _ in range(2):
        remembered, whole = both(cli, monkeypatch, *command)
        assert remembered == whole
        assert len(whole) == 1


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
    assert "prefilled 1 document" in cli(*PREFILL).stderr
    assert "compressed 1 document" in cli(*COMPRESS).stderr
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
    assert "prefilled 1 document" in cli(*PREFILL).stderr


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


def test_an_artifact_that_is_cut_off_is_noticed(cli: Cli, loads: list[str]) -> None:
    cli(*PREFILL)
    loads.clear()
    for file in Path("kv-store/artifacts").rglob("*.safetensors"):
        os.truncate(file, 100)
    cli(*PREFILL)
    assert loads == ["prefill"]


def test_a_further_chat_template_is_noticed(
    cli: Cli, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    monkeypatch.setenv("KVTOOL_MODEL", str(model))
    cli(*PREFILL)
    templates = model / "additional_chat_templates"
    templates.mkdir()
    (templates / "rag.jinja").write_text("{{ messages }}")
    assert "another model" in cli(*PREFILL, code=1).stderr


def test_an_installed_package_is_noticed(
    cli: Cli, loads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli(*PREFILL)
    loads.clear()
    (tmp_path / "site" / "plugin-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    cli(*PREFILL)
    assert loads == ["prefill"]


def test_a_path_need_not_be_unicode(cli: Cli, loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.fsdecode(b"caf\xe9"))
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("a.md").write_text("Some text.\n")
    for _ in range(2):
        cli("prefill", "a.md")
    assert loads == ["prefill"]


def test_what_is_no_document_is_not_read(cli: Cli) -> None:
    """A file too large would fill the memory, and a pipe would never end."""
    with Path("docs/large.log").open("wb") as file:
        file.truncate(1 << 42)
    os.mkfifo("pipe")
    assert "too large" in cli(*PREFILL, code=3).stderr
    assert "named pipe" in cli(*PREFILL, "--prefix-file", "pipe", code=1).stderr


def test_the_latest_runs_are_kept(cli: Cli, loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_memory, "KEPT", 2)
    runs = Path(os.environ["KVTOOL_CACHE_DIR"]) / "runs"
    for name in ("c.txt", "docs/a.md", "docs/b.md"):
        cli("prefill", name)
    assert len(list(runs.iterdir())) == 2
    loads.clear()
    cli("prefill", "docs/b.md")
    assert not loads
