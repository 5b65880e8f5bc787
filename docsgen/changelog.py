"""The changelog: towncrier gathers what is unreleased from the fragments, and what was released stays as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from docsgen.markdown import page as whole_page

ROOT = Path(__file__).parents[1]
START = "<!-- towncrier release notes start -->"

INTRO = """In the form of [Keep a Changelog](https://keepachangelog.com/en/1.1.0/). Versions follow
[Semantic Versioning](https://semver.org/spec/v2.0.0.html)."""


def page() -> str:
    """Everything above ``START`` is made anew; towncrier puts releases below it."""
    file = ROOT / "CHANGELOG.md"
    _, _, released = (file.read_text() if file.is_file() else "").partition(START)
    return whole_page("Changelog", "changelog/", INTRO, unreleased(ROOT), START) + released.removeprefix("\n")


def unreleased(root: Path) -> str:
    """The section of the fragments below ``root``. A fragment whose name says no kind is an error."""
    section = towncrier(root, "--draft", "--version", "Unreleased", "--date", "")
    # A release's heading has its date.
    return "\n".join(["## Unreleased", *section.splitlines()[1:]])


def towncrier(root: Path, *options: str) -> str:
    """What ``towncrier build`` prints for the fragments below ``root``. Exits where it fails."""
    command = [sys.executable, "-m", "towncrier", "build", "--dir", str(root), *options]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"changelog/: {(run.stderr or run.stdout).strip()}")
    return run.stdout.strip()
