"""E-books (EPUB): the chapters in reading order, as web pages are read."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote

from kvtool.documents.encoding import declared_encoding, decode
from kvtool.documents.html import html_text
from kvtool.documents.office.package import Element, Package, local
from kvtool.errors import DocumentError

TITLE = re.compile(r"<title\b[^>]*/>|<title\b.*?</title>", re.DOTALL | re.IGNORECASE)
ENCRYPTION = "META-INF/encryption.xml"


def epub_text(data: bytes, name: str, warnings: list[DocumentError]) -> str:
    """The book's title and all chapters. A book with more chapters of pictures than of text goes to ``warnings``."""
    package = Package(data, name)
    book = _first(package.xml("META-INF/container.xml"), "rootfile").attrib["full-path"]
    root = package.xml(book)
    items = {item.get("id"): item.get("href", "") for item in root.iter() if local(item) == "item"}
    spine = [items[item.get("idref")] for item in root.iter() if local(item) == "itemref"]
    parts = [posixpath.normpath(posixpath.join(posixpath.dirname(book), unquote(href))) for href in spine]
    # Fonts are often obscured in a way that counts as encryption; chapters never are.
    if ENCRYPTION in package.names and set(parts) & _encrypted(package):
        reason = "is encrypted (DRM); expected a book that any reader opens"
        raise DocumentError(name, reason, "get it without, or leave it out")
    chapters = []
    for part in parts:
        page = package.zip.read(part)
        markup = decode(page, name, warnings, declared=declared_encoding(page, ".xhtml", html=True))
        chapters.append(html_text(TITLE.sub("", markup), name, warnings))
    blank = chapters.count("")
    if blank and 2 * blank >= len(chapters) > blank:
        reason = f"has no text in {blank:,} of its {len(chapters):,} chapters, which may be pictures"
        warnings.append(DocumentError(name, reason, "check that it is the text edition of the book"))
    title = next((e.text for e in root.iter() if local(e) == "title" and e.text), "")
    return "\n\n".join(text for text in (title.strip(), *chapters) if text) if any(chapters) else ""


def _first(root: Element, name: str) -> Element:
    return next(element for element in root.iter() if local(element) == name)


def _encrypted(package: Package) -> set[str]:
    references = (e for e in package.xml(ENCRYPTION).iter() if local(e) == "CipherReference")
    return {unquote(reference.get("URI", "")) for reference in references}
