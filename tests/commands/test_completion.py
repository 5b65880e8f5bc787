"""Shells complete commands, options and the names of documents, without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
    assert completed("build", "--ch") == ["--check"]
    assert completed("show", "docs/") == ["docs/a.md", "docs/b.md"]
    assert completed("compress", "c") == ["c.txt"]
    assert completed("ask", "--doc", "docs/a") == ["docs/a.md"]
    assert completed("compress", "--store", "kv-store", "c") == ["c.txt"]


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
