"""The bounds on outside input."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

from docsgen.markdown import code, docstring, table
from docsgen.markdown import page as whole_page
from kvtool import limits

SIZES = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}


def page() -> str:
    rows = [(code(name), shown(name, getattr(limits, name)), meaning) for name, meaning in documented()]
    return whole_page("Limits", "kvtool/limits.py", docstring(limits), table(("limit", "value", "on"), rows))


def documented() -> list[tuple[str, str]]:
    """Each constant with the string below it."""
    body = ast.parse(Path(limits.__file__).read_text()).body
    return [
        (above.targets[0].id, " ".join(below.value.value.split()).replace("``", "`"))
        for above, below in pairwise(body)
        if isinstance(above, ast.Assign) and isinstance(below, ast.Expr)
    ]


def shown(name: str, value: float) -> str:
    if name.endswith(("BYTES", "RATE")):
        unit = next((unit for unit, size in SIZES.items() if value % size == 0), None)
        return f"{value // SIZES[unit]:,} {unit}" if unit else f"{value:,} bytes"
    if name.endswith("SECONDS"):
        days = value / (24 * 3600)
        return f"{days:g} days" if days > 1 else f"{value:g} seconds"
    return f"{value:,}"
