"""Rich text, through striprtf."""

from __future__ import annotations

import codecs
import re

from kvtool.errors import DocumentError

CODE_PAGE = re.compile(rb"\\ansicpg(\d{1,5})")

TOKEN = re.compile(
    r"\\\\|\\[{}]|(?P<brace>[{}])"
    r"|(?:\\\*)?\\(?:(?P<note>footnote|annotation)|(?P<margin>(?:header|footer)[lrf]?)"
    r"|shp(?:inst|txt)?|do|dptxbxtext)(?![a-z]) ?"
)
"""Braces, and the control words before text that striprtf would leave out: notes, page headers, text boxes."""


def rtf_text(data: bytes, name: str, warnings: list[DocumentError]) -> str:
    """The text of all paragraphs; table cells end with ``|``. Bytes that are no characters go to ``warnings``."""
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise ValueError("begins otherwise than rich text")
    page = CODE_PAGE.search(data)
    encoding = f"cp{page[1].decode()}" if page else "cp1252"
    try:
        codecs.lookup(encoding)
    except LookupError:
        encoding = "cp1252"
    source = _unhidden(data.decode(encoding, "replace"))
    text: str = rtf_to_text(source, encoding, "replace")
    # Characters beyond 16 bits are written as two halves.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
    if strays := text.count("\N{REPLACEMENT CHARACTER}"):
        reason = f"{strays:,} of its characters are not {encoding} and were replaced by U+FFFD"
        warnings.append(DocumentError(name, reason, "save it again in a word processor"))
    return text.strip()


def _unhidden(source: str) -> str:
    """The source with notes in brackets, and page headers and text boxes in place."""
    closings: list[str] = []

    def replacement(token: re.Match[str]) -> str:
        if token["brace"] == "{":
            closings.append("")
        elif token["brace"]:
            return (closings.pop() if closings else "") + "}"
        elif token["note"] or token["margin"]:
            opening, closing = (" [", "]") if token["note"] else ("\\par ", "\\par ")
            closings[-1:] = [closing]
            return opening
        elif not token.group().endswith(("\\", "{", "}")):
            return ""
        return token.group()

    return TOKEN.sub(replacement, source)
