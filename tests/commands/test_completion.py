"""Shells complete commands, options and the names of documents, without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer.main

from kvtool.cli import app
from kvtool.codecs.recipe_registry import recipes
from kvtool.commands.completion import PRESETS, recipe_names
from tests.commands.manners.conftest import commands_of

SHELLS = ("bash", "zsh", "fish")


def completed(*words: str) -> list[str]:
    """What bash is offered for the last of ``words``, in the working directory."""
    line = " ".join(["kvtool", *words])
    environment = {
        **os.environ,
        "_KVTOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; sys.argv[0] = 'kvtool'; from kvtool.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| torch" not in done.stderr
    return done.stdout.split()


@pytest.mark.usefixtures("store")
def test_commands_options_and_documents_are_completed() -> None:
    assert completed("pre") == ["prefill"]
    assert completed("connector", "pro") == ["proxy"]
    assert completed("blend", "docs/a") == ["docs/a.md"]
    assert completed("build", "--ch") == ["--check"]
    assert completed("show", "docs/") == ["docs/a.md", "docs/b.md"]
    assert completed("compress", "c") == ["c.txt"]
    assert completed("ask", "--doc", "docs/a") == ["docs/a.md"]
    assert completed("compress", "--store", "kv-store", "c") == ["c.txt"]


@pytest.mark.usefixtures("store")
def test_recipes_variants_and_presets_are_completed() -> None:
    assert completed("compress", "--recipe", "kv") == [
        name for name in recipe_names() if name.startswith("kv")
    ]
    assert completed("compress", "--recipe", "kvzip+ki") == ["kvzip+kivi"]
    assert completed("compress", "--preset", "") == list(PRESETS)
    assert "kvtc" in completed("calibrate", "--recipe", "k")
    assert completed("eval", "--recipes", "nf4,kiv") == ["nf4,kivi"]
    assert completed("recommend", "--recipes", "ra") == ["razorattention", "raw"]
    assert completed("ask", "--variant", "") == ["raw"]
    assert completed("push", "there", "--variant", "r") == ["raw"]


def test_the_names_that_are_offered_are_those_there_are() -> None:
    own = {name: one for name, one in recipes().items() if "kvtool" in one.make.__module__}
    assert sorted(own) == recipe_names()
    promised = {tuple(one.dial.presets) for one in own.values() if one.dial and one.dial.presets}
    assert promised == {PRESETS}


def test_every_option_of_such_names_is_completed() -> None:
    named = {"recipe", "recipes", "variant", "preset", "names", "doc"}
    bare = [
        f"{name} {parameter.name}"
        for name, command in commands_of(typer.main.get_command(app)).items()
        for parameter in command.params
        if parameter.name in named and not parameter._custom_shell_complete
    ]
    assert bare == []


@pytest.mark.usefixtures("corpus")
def test_without_a_store_nothing_is_offered() -> None:
    assert completed("show", "docs/") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script(shell: str) -> None:
    environment = {**os.environ, "_KVTOOL_COMPLETE": f"source_{shell}"}
    code = "import sys; sys.argv[0] = 'kvtool'; from kvtool.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "_KVTOOL_COMPLETE" in done.stdout
