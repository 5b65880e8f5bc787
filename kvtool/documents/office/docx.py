"""Word documents, through mammoth and the same Markdown as web pages."""

from __future__ import annotations

import io
import re

from kvtool.documents.html import html_text
from kvtool.documents.office.package import Package
from kvtool.errors import DocumentError

BACK_LINK = re.compile(r'\s*<a href="#(?:footnote|endnote|comment)-ref-[^"]*">↑</a>')


def docx_text(data: bytes, name: str, warnings: list[DocumentError]) -> str:
    """Headings, lists, tables, notes and comments; after a rule what mammoth leaves out, such as page headers."""
    import mammoth

    package = Package(data, name)
    main = package.main_part()
    page = mammoth.convert_to_html(
        io.BytesIO(data),
        style_map="comment-reference => sup",
        include_embedded_style_map=False,
        convert_image=lambda _: [],
        external_file_access=False,
    )
    text = html_text(BACK_LINK.sub("", page.value), name, warnings)
    folder = main.rpartition("/")[0]
    rest = package.left_out(text, [part for part in package.names if part.startswith(folder)])
    return "\n\n".join([text, "---", *rest] if text and rest else [text, *rest])
