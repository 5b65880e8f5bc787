"""What a CI runner is told beside the terminal: annotations, and a summary of the step.

Only GitHub's kind is known (Gitea and Forgejo have the same): lines that begin with ``::error``, and a file for Markdown that the
environment names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvtool.commands.output import alert, escaped


def annotate(lines: Iterable[str]) -> None:
    """Shows lines at the top of a run; does nothing outside of a runner."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in lines:
            message = escaped(line).replace("%", "%25")
            alert(f"::error title=kvtool build::{message}")


def summarize(title: str, rows: Sequence[tuple[str, str]], heading: tuple[str, str]) -> None:
    """Adds a table to the summary of the step; does nothing outside of a runner."""
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if not file:
        return
    lines = (
        [f"### {title}", "", _row(heading), "| --- | --- |", *map(_row, rows)] if rows else [f"### {title}"]
    )
    with Path(file).open("a", encoding="utf-8") as summary:
        summary.write("\n".join(lines) + "\n\n")


def _row(cells: tuple[str, str]) -> str:
    return "| " + " | ".join(escaped(cell).replace("|", "\\|") for cell in cells) + " |"
