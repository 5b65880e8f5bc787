"""Environments of other tools, each made from a file of pinned requirements."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def make_environment(folder: Path, requirements: Path) -> bool:
    """Makes the environment ``folder``. Returns whether there was anything to do.

    The requirements are complete, so that nothing is chosen here: they are what pip made of the first few lines' packages, with
    Python 3.11 on Linux. torch comes first and with what it depends on, because that differs from machine to machine; everything
    else without. One that was made from the same requirements is left as it is.
    """
    made = folder / "requirements.txt"
    if made.exists() and made.read_text() == requirements.read_text():
        return False
    run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [*python_of(folder, "-m", "pip"), "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--constraint", str(requirements), "torch"])
    run([*pip, "--no-deps", "--requirement", str(requirements)])
    made.write_text(requirements.read_text())
    return True


def python_of(folder: Path, *arguments: str) -> list[str]:
    """The command that runs the environment's Python, which sees nothing of the caller's."""
    return [str(folder / "bin" / "python"), "-I", *arguments]


def run(command: Sequence[str]) -> None:
    """Runs ``command``, whose output is shown only if it fails. Raises ``SystemExit`` then."""
    environment = {**os.environ, "DISABLE_CUDA": "1"}  # hqq compiles CUDA kernels that no cache uses
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(command)}: failed with exit code {done.returncode}")
