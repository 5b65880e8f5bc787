"""The command line, as Typer's own generator describes it."""

from __future__ import annotations

import html
import re
import subprocess
import sys

import typer.main

from docsgen.markdown import first_paragraph
from docsgen.markdown import page as whole_page
from kvtool.cli import app


def page() -> str:
    # The environment's width and colours must not reach the page.
    run = subprocess.run(
        [sys.executable, "-m", "typer", "kvtool.cli", "utils", "docs", "--name", "kvtool"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path)), "NO_COLOR": "1"},
    )
    body = html.unescape(run.stdout).partition("\n")[2]
    return whole_page(
        "Commands",
        "kvtool/commands/",
        "Every command, as `kvtool COMMAND --help` has it. Options that are [settings](settings.md) can be given once, in a "
        "file or in the environment.",
        re.sub(r"^\* `([\w-]+)`: .*$", in_full, body, flags=re.MULTILINE).strip(),
    )


def in_full(line: re.Match[str]) -> str:
    """Typer cuts the first sentence of each command short in the list of all."""
    top = typer.main.get_command(app).commands
    groups = ((f"{name}-", one.commands) for name, one in top.items() if hasattr(one, "commands"))
    for group, commands in (("", top), *groups):
        if command := commands.get(line[1]):
            return f"* [`{line[1]}`](#kvtool-{group}{line[1]}): {first_paragraph(command.help)}"
    return line[0]
