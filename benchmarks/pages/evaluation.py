"""What pages of an evaluation have in common: the machine, estimates, rows that failed, and where the page is written."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import quality_pictures
from kvtool.report.table import table

Json = Mapping[str, Any]

Markdown = Callable[[Json, Sequence[tuple[str, str]]], str]
"""Makes the page, of an evaluation and of what each picture shows and its address."""


Draw = Callable[..., list[tuple[str, Path]]]
"""Draws pictures, as ``quality_pictures.draw`` does."""


def show(
    result: Json, arguments: Namespace, name: str, markdown: Markdown, draw: Draw = quality_pictures.draw
) -> None:
    """Draws the pictures ``name`` in ``arguments.out``, writes the page where ``arguments.write`` says, and prints the table."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(result, arguments.out, name, ("svg", "png"))
    if arguments.write:
        write: Path = arguments.write
        drawn = draw(result, write.parent, write.stem)
        write.write_text(markdown(result, [(shows, path.name) for shows, path in drawn]))
    print(table(result))
    for row, reason in result["failed"].items():
        print(f"failed: {row}: {reason}")


def machine(result: Json) -> str:
    about = result["machine"]
    return (
        f"{about['cores']} cores ({about['processor']}), {about['device']}, Python {about['python']}, "
        f"torch {about['torch']}, transformers {about['transformers']}, kvtool {result['kvtool']}"
    )


def failed(result: Json) -> list[str]:
    """A section on the rows that failed, if any did."""
    rows = [f"- `{name}`: {reason}" for name, reason in result["failed"].items()]
    return ["## Rows that failed\n\n" + "\n".join(rows)] if rows else []


def with_interval(estimate: Mapping[str, float] | None, digits: int) -> str:
    """Empty where there is none, as for what the raw cache keeps of itself, and for what is no number."""
    if estimate is None:
        return ""
    value, low, high = (f"{estimate[part]:.{digits}f}" for part in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"
