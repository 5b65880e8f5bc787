"""Tables in Markdown, and their place in a page."""

from __future__ import annotations

from collections.abc import Sequence

import kvtool


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markers(benchmark: str, model: str) -> tuple[str, str]:
    """Lines between which a page has the tables of ``model``."""
    return f"<!-- benchmarks.{benchmark}: {model} -->", f"<!-- end: {model} -->"


def replaced(page: str, benchmark: str, model: str, body: str) -> str:
    """``page`` with ``body`` between the markers of a benchmark and its model.

    Raises ``KvtoolError`` if it has not one of each, in order.
    """
    first, last = markers(benchmark, model)
    before, _, rest = page.partition(first)
    _, _, after = rest.partition(last)
    if page.count(first) != 1 or page.count(last) != 1 or last not in rest:
        raise kvtool.KvtoolError(
            "the page", f"expected the lines {first} and {last}, once each and in this order", "add them"
        )
    return f"{before}{first}\n\n{body.strip()}\n\n{last}{after}"
