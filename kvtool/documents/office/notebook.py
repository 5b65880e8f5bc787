"""Jupyter notebooks: what all cells say, and what their code has printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kvtool.documents.html import html_text
from kvtool.errors import DocumentError

COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def notebook_text(data: bytes, name: str, warnings: list[DocumentError]) -> str:
    """Cells in order: Markdown as it is, code and its outputs fenced. Pictures, which are outputs too, are left out."""
    notebook = json.loads(data)
    language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "")
    # Format 3 kept the cells in worksheets.
    cells = [c for sheet in notebook.get("worksheets", [notebook]) for c in sheet["cells"]]
    blocks: list[str] = []
    for cell in cells:
        source = _joined(cell.get("source", cell.get("input", ""))).strip("\n")
        blocks.append(_fenced(source, language) if cell["cell_type"] == "code" else source)
        blocks += (_fenced(text.strip("\n")) for text in _outputs(cell.get("outputs", []), name, warnings))
    return "\n\n".join(block for block in blocks if block.strip())


def _outputs(outputs: list[dict[str, Any]], name: str, warnings: list[DocumentError]) -> Iterator[str]:
    for output in outputs:
        data = output.get("data", output)
        if "traceback" in output:
            yield COLOURS.sub("", "\n".join(output["traceback"]))
        elif any(kind.startswith("image/") for kind in data) or "png" in data:
            # Its text only names the object that drew it.
            continue
        elif text := data.get("text/plain") or data.get("text"):
            yield COLOURS.sub("", _joined(text))
        elif page := data.get("text/html"):
            yield html_text(_joined(page), name, warnings)


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _fenced(text: str, language: str = "") -> str:
    fence = max(["```", *(run + "`" for run in re.findall("`{3,}", text))], key=len)
    return f"{fence}{language}\n{text}\n{fence}" if text.strip() else ""
