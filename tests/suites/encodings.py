"""Texts in every encoding that Python has, declared in every way or in none: what kvtool reads, and what it says of it."""

from __future__ import annotations

from collections.abc import Iterator
from encodings import normalize_encoding
from encodings.aliases import aliases
from pathlib import Path
from typing import NamedTuple

from kvtool.documents.encoding import BYTE_ORDER_MARKS, SUPERSETS
from kvtool.documents.html import html_text
from kvtool.documents.read import HTML_SUFFIXES, read_text
from kvtool.errors import DocumentError
from tests.suites.languages import LANGUAGES

RIGHT, WARNED, MISREAD, REFUSED, WRONG = (
    "right",
    "right, warned of",
    "wrong, warned of",
    "refused",
    "silently wrong",
)


class Case(NamedTuple):
    """A file's bytes, its suffix, and the text that it should be read as.

    ``group`` is what cases are counted by: how the encoding is declared, or a folder.
    """

    encoding: str
    group: str
    data: bytes
    expected: str
    suffix: str = ".txt"
    given: str | None = None


def verdict(case: Case, directory: Path) -> str:
    path, warnings = directory / f"file{case.suffix}", list[DocumentError]()
    path.write_bytes(case.data)
    try:
        text = read_text(path, warnings, case.given)
    except DocumentError:
        return REFUSED
    texts = [case.expected, *_as_browsers(case)]
    if case.suffix in HTML_SUFFIXES:
        texts = [html_text(expected, case.group, []) for expected in texts]
    right = text in texts
    # A warning must say what to do: that another encoding can be set.
    if any("--encoding" in str(warning) for warning in warnings):
        return WARNED if right else MISREAD
    return RIGHT if right else WRONG


def _as_browsers(case: Case) -> list[str]:
    """The text by the superset that browsers take the encoding for: a few of its characters only look alike."""
    superset = SUPERSETS.get(normalize_encoding(case.encoding).lower())
    return [case.data.decode(superset, "replace").replace("\r\n", "\n")] if superset else []


def text_encodings() -> list[str]:
    """Python's names of its encodings of characters: no transforms of bytes, nothing that one system has."""
    names = []
    for name in sorted(set(aliases.values())):
        try:
            "".encode(name)
        except LookupError:
            continue
        names.append(name)
    return names


UNKNOWABLE = {("cp424", "undeclared")}
"""The Hebrew letters of EBCDIC are the bytes of ASCII's, and nothing else shows."""


def made() -> Iterator[Case]:
    for encoding in text_encodings():
        for text in LANGUAGES.values():
            try:
                data = text.encode(encoding)
            except UnicodeEncodeError:
                continue
            if data.decode(encoding) == text:
                yield from _forms(encoding, text)


def _forms(encoding: str, text: str) -> Iterator[Case]:
    plain = text.encode(encoding)
    yield Case(encoding, "undeclared", plain, text)
    yield Case(encoding, "--encoding", plain, text, given=encoding)
    label = encoding.replace("_", "-")
    for group, page, suffix in (
        ("XML declaration", f'<?xml version="1.0" encoding="{label}"?><p>{text}</p>', ".xml"),
        ("meta charset", f'<meta charset="{label}"><p>{text}</p>', ".html"),
        ("comment", f"# -*- coding: {label} -*-\nTEXT = '''{text}'''\n", ".py"),
    ):
        yield Case(encoding, group, page.encode(encoding), page, suffix)
    for mark, marked in BYTE_ORDER_MARKS:
        if marked == label:
            yield Case(encoding, "byte order mark", mark + plain, text)
