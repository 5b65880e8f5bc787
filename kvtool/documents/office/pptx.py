"""PowerPoint presentations: the text of each slide in order, then its charts, diagrams and notes."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.documents.office.package import (
    Element,
    Package,
    attribute,
    chart_lines,
    local,
    paragraphs,
    table,
)
from kvtool.errors import DocumentError


def pptx_text(data: bytes, name: str, warnings: list[DocumentError]) -> str:
    """All slides, a blank line between shapes; titles are headings. Slides without text go to ``warnings``."""
    package = Package(data, name)
    main = package.main_part()
    related = package.related(main)
    ids = [element for element in package.xml(main).iter() if local(element) == "sldId"]
    slides = [related[id][1] for element in ids for id in element.attrib.values() if id in related]
    texts = [_slide(package, slide) for slide in slides]
    if any(texts) and (blank := [str(number) for number, text in enumerate(texts, 1) if not text]):
        numbers = ", ".join(blank[:20]) + (", …" if len(blank) > 20 else "")
        reason = f"has no text on {len(blank):,} of its {len(texts):,} slides ({numbers}), which are blank or pictures"
        warnings.append(DocumentError(name, reason, "add their text as notes if they matter"))
    return "\n\n".join(text for text in texts if text)


def _slide(package: Package, part: str) -> str:
    blocks = list(_blocks(package.xml(part)))
    for kind, target in sorted(package.related(part).values()):
        if kind in ("chart", "diagramData", "comments"):
            root = package.xml(target)
            blocks.append("\n".join([*_lines(root), *chart_lines(root)]))
        elif kind == "notesSlide":
            blocks += (f"Notes: {block}" for block in _blocks(package.xml(target)) if block)
    return "\n\n".join(block for block in blocks if block)


def _blocks(element: Element) -> Iterator[str]:
    """The text of each shape and table below ``element``, in the file's order."""
    for child in element:
        match local(child):
            case "sp" | "cxnSp":
                kind = _placeholder(child)
                text = "" if kind in ("sldNum", "sldImg") else "\n".join(_lines(child))
                yield f"## {' '.join(text.split())}" if text and kind in ("title", "ctrTitle") else text
            case "tbl":
                rows = [row for row in child if local(row) == "tr"]
                cells = [[" ".join(_lines(cell)) for cell in row if local(cell) == "tc"] for row in rows]
                yield "\n".join(table(cells))
            case "Fallback":
                pass
            case _:
                yield from _blocks(child)


def _lines(element: Element) -> list[str]:
    return [paragraph.replace("\0", " ").strip() for paragraph in paragraphs(element)]


def _placeholder(shape: Element) -> str | None:
    return next((attribute(child, "type") for child in shape.iter() if local(child) == "ph"), None)
