"""Pieces of Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence


def page(title: str, source: str, *blocks: str) -> str:
    """A whole page; ``source`` is the file that says what stands in it."""
    # The site takes a page's title from a heading on its first line.
    note = f"<!-- Written by `python -m docsgen` from {source}. Change that, not this page. -->"
    return "\n\n".join([f"# {title}", note, *filter(None, blocks)]) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, or nothing where there are no rows."""
    lines = [row_of(row) for row in rows]
    return "\n".join([row_of(headings), row_of(["---"] * len(headings)), *lines]) if lines else ""


def row_of(cells: Sequence[object]) -> str:
    # A cell is one line, and a bar would end it.
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", r"\|") for cell in cells) + " |"


def code(value: object) -> str:
    return f"`{value}`"


def docstring(documented: object) -> str:
    """Its own docstring, not one that it inherits, with single backticks and without accidental emphasis."""
    text = inspect.cleandoc(getattr(documented, "__doc__", None) or "").replace("``", "`")
    return escaped(text)


def escaped(text: str) -> str:
    """``text`` with the stars outside of code made literal: 2**8 is a power, not the start of bold type."""
    parts = text.split("`")
    parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    return "`".join(parts)


def first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())
