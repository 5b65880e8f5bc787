"""``python -m benchmarks``: every name leads to a module with ``main``, and is listed with what it measures."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.corpora import packages, prefilled
from benchmarks.peers import environments
from benchmarks.quality import blend

FOLDER = Path(command.__file__).parent


@pytest.mark.parametrize("name", command.MODULES)
def test_a_benchmark_has_a_main_that_takes_arguments(name: str) -> None:
    path = FOLDER / (command.MODULES[name].replace(".", "/") + ".py")
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    (main,) = [function for function in functions if function.name == "main"]
    assert [argument.arg for argument in main.args.args] == ["argv"]
    assert f"python -m benchmarks {name}" in path.read_text()


def test_without_a_name_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    listed = capsys.readouterr().out
    for name, module in command.MODULES.items():
        assert f"  {name} " in listed
        assert command.summary(module) in listed


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nothing"]) == 2
    assert "no benchmark is called nothing" in capsys.readouterr().err


def test_a_benchmark_gets_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["rate_distortion", "--help"])
    assert left.value.code == 0
    assert "--haystacks" in capsys.readouterr().out


@pytest.mark.parametrize("folder", [packages.FOLDER, prefilled.FOLDER, environments.FOLDER, blend.FOLDER])
def test_what_a_benchmark_keeps_is_in_build(folder: Path) -> None:
    assert folder.parent == FOLDER.parent / "build"
