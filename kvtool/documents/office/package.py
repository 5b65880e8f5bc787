"""Zip files of XML parts, as Word, PowerPoint, Excel and EPUB write them: bounds, parts, relations, and their text."""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias
from urllib.parse import unquote
from xml.etree import ElementTree
from zipfile import ZipFile

from kvtool import limits
from kvtool.errors import DocumentError

Element: TypeAlias = ElementTree.Element

OLE = b"\xd0\xcf\x11\xe0"
"""What an Office file with a password begins with, as files of Office 97 do."""

NOT_SHOWN = frozenset({"del", "moveFrom", "Fallback"})
"""Elements with text that was deleted, was moved away, or is a second copy for old programs."""

PARAGRAPHS = frozenset({"p", "comment", "cm"})
"""Elements that hold one paragraph; comments of cells and old ones of slides hold theirs without another."""

PAUSES = frozenset(
    {"tab", "br", "cr", "footnoteReference", "endnoteReference", "commentReference", "fldChar", "oMath"}
)
"""Elements in a paragraph that a converter may show as anything, so that its text is compared piece by piece."""

UNSEEN_PARTS = re.compile(r"glossary/|diagrams/(?!data)|(?:slide|notes|handout)(?:Master|Layout)s/")


class Package:
    """A zip file whose unpacked parts are bounded."""

    def __init__(self, data: bytes, name: str) -> None:
        if data.startswith(OLE):
            reason = (
                "is encrypted, or of an Office before 2007; expected a file that opens without a password"
            )
            raise DocumentError(name, reason, "save it without one, in the format that its name says")
        self.name = name
        self.zip = ZipFile(io.BytesIO(data))
        parts = self.zip.infolist()
        # Reading a part gives no more than it says here.
        if (size := sum(part.file_size for part in parts)) > limits.UNPACKED_BYTES:
            reason = f"too large, {size:,} bytes when unpacked; expected at most {limits.UNPACKED_BYTES:,}"
            raise DocumentError(name, reason, "split it into smaller files")
        if any(part.flag_bits & 1 for part in parts):
            reason = "is encrypted; expected a file that opens without a password"
            raise DocumentError(name, reason, "save it without one")
        self.names = [part.filename for part in parts]

    def xml(self, part: str) -> Element:
        return ElementTree.fromstring(self.zip.read(part))

    def related(self, part: str) -> dict[str, tuple[str, str]]:
        """What a part refers to inside the package: id → kind, such as ``chart``, and name of the other part."""
        folder, file = posixpath.split(part)
        relations = posixpath.join(folder, "_rels", f"{file}.rels")
        if relations not in self.names:
            return {}
        return {
            relation.get("Id", ""): (
                relation.get("Type", "").rpartition("/")[2],
                posixpath.normpath(posixpath.join("/", folder, unquote(relation.get("Target", ""))))[1:],
            )
            for relation in self.xml(relations)
            if relation.get("TargetMode") != "External"
        }

    def main_part(self) -> str:
        """The part that the others belong to. Raises ``KeyError`` where the file names none."""
        return dict(self.related("").values())["officeDocument"]

    def left_out(self, text: str, parts: Iterable[str]) -> list[str]:
        """The paragraphs and charts of ``parts`` of which ``text`` lacks words, each once."""
        known = letters(text)
        lines: dict[str, None] = {}
        for part in parts:
            if part.endswith(".xml") and not UNSEEN_PARTS.search(part):
                root = self.xml(part)
                for paragraph in paragraphs(root):
                    if any(letters(piece) not in known for piece in paragraph.split("\0")):
                        lines[" ".join(paragraph.replace("\0", " ").split())] = None
                lines |= dict.fromkeys(chart_lines(root))
        return list(lines)


def local(element: Element) -> str:
    """An element's name without its namespace: those of one format differ between versions and programs."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Element, name: str) -> str | None:
    """An attribute, in whatever namespace."""
    return next((value for key, value in element.items() if key.rpartition("}")[2] == name), None)


def paragraphs(root: Element) -> Iterator[str]:
    """The text of each paragraph below ``root``, one within another as one of its own; ``\\0`` stands for pauses."""
    stack: list[tuple[Element, list[str] | None]] = [(root, None)]
    texts: list[list[str]] = []
    while stack:
        element, text = stack.pop()
        name = local(element)
        if name in NOT_SHOWN:
            continue
        if name in PARAGRAPHS:
            if text is not None:
                text.append("\0")
            text = []
            texts.append(text)
        elif text is not None:
            if name in ("t", "text"):
                text.append(element.text or "")
            elif name in PAUSES:
                text.append("\0")
        stack += [(child, text) for child in reversed(element)]
    for text in texts:
        if (joined := "".join(text)).strip("\0 \t\n"):
            yield joined


def chart_lines(root: Element) -> Iterator[str]:
    """A line for each series of a chart: its name, then its points, as far as the file has them."""
    for series in root.iter():
        if local(series) != "ser":
            continue
        columns = {
            local(child): [value.text or "" for value in child.iter() if local(value) == "v"]
            for child in series
        }
        names = columns.get("cat") or columns.get("xVal") or []
        values = columns.get("val") or columns.get("yVal") or []
        if len(names) == len(values):
            values = [f"{name} {value}" for name, value in zip(names, values, strict=True)]
        yield ": ".join(part for part in (" ".join(columns.get("tx", [])), ", ".join(values)) if part)


def letters(text: str) -> str:
    """Letters and digits alone, by which two forms of a text are compared."""
    return re.sub(r"[\W_]+", "", text)


def table_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def table(rows: list[list[str]]) -> list[str]:
    """A Markdown table; its first row is the head, as Markdown has no other."""
    width = max(map(len, rows), default=0)
    lines = [table_row([*row, *[""] * (width - len(row))]) for row in rows]
    return [*lines[:1], "|" + " --- |" * width, *lines[1:]]
