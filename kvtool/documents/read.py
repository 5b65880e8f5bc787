"""Reads one source file into text. A file that cannot be read gives a one-line error: why, and what to do."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from kvtool import limits
from kvtool.counts import counted
from kvtool.documents.encoding import declared_encoding, decode, given_encoding
from kvtool.documents.html import html_text
from kvtool.documents.office.convert import FORMATS, office_text
from kvtool.documents.pdf import pdf_text
from kvtool.errors import DocumentError

HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})


class BlankFile(DocumentError):
    """A file holds no bytes, or white space only; an office document, neither text nor pictures."""


def read_text(path: Path, warnings: list[DocumentError], encoding: str | None = None) -> str:
    """The text of a document: HTML and office documents as Markdown, the text of a PDF, anything else as it stands.

    The byte order mark is taken off and newlines become ``\\n``. Nothing else is changed in plain text.

    Args:
        path: the file; its suffix says whether it is HTML, PDF or an office document.
        warnings: gets what the text may lack, or may have got wrong.
        encoding: that of a text or HTML file, whatever it declares; by default it is found out.

    Raises:
        DocumentError: the file cannot be read, is too large, is binary, is broken, or holds no text.
        UsageError: ``encoding`` is no encoding.
    """
    return text_of(read_bytes(path), path.suffix, shown(path), warnings, encoding)


def text_of(
    data: bytes, suffix: str, name: str, warnings: list[DocumentError], encoding: str | None = None
) -> str:
    """The text of a document's bytes, as ``read_text`` gives it. Raises as that does."""
    given = given_encoding(encoding) if encoding else None
    suffix = suffix.lower()
    if data and suffix == ".pdf":
        text = pdf_text(data, name, warnings)
    elif data and suffix in FORMATS:
        text = office_text(data, suffix, name, warnings)
    else:
        html = suffix in HTML_SUFFIXES
        declared = declared_encoding(data, suffix, html=html)
        text = decode(data, name, warnings, given=given, declared=declared)
        if html:
            text = html_text(text, name, warnings)
    if not text or text.isspace():
        reason = f"no text in its {counted(len(data), 'byte')}" if data else "it is empty (0 bytes)"
        kind = BlankFile if suffix in FORMATS or not data.strip() else DocumentError
        raise kind(name, f"{reason}; expected a document with text", "fill the file or leave it out")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most ``limits.DOCUMENT_BYTES``.

    Raises:
        DocumentError: it is too large, is no regular file, is gone, or may not be read.
    """
    name = shown(path)
    try:
        status = path.stat()
        # Opening a named pipe would wait for a writer, so the kind is checked first.
        if kind := special_kind(status.st_mode):
            raise DocumentError(name, f"is a {kind}; expected a regular file", "name a file instead")
        size = status.st_size
        if size <= limits.DOCUMENT_BYTES:
            with path.open("rb") as file:
                return read_stream(file, name)  # which may have grown since, and some report no size at all
    except FileNotFoundError:
        reason = "no such file, or it has vanished; expected a file"
        raise DocumentError(name, reason, "check the path") from None
    except PermissionError:
        reason = "permission denied; expected a file you may read"
        raise DocumentError(name, reason, "change its permissions or leave it out") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error}); expected a readable file"
        raise DocumentError(name, reason, "check the path and the disk") from error
    raise _too_large(name, size)


def read_stream(stream: BinaryIO, name: str) -> bytes:
    """The bytes of a stream of at most ``limits.DOCUMENT_BYTES``. Raises ``DocumentError`` where there are more."""
    data = stream.read(limits.DOCUMENT_BYTES + 1)
    if len(data) > limits.DOCUMENT_BYTES:
        raise _too_large(name, len(data))
    return data


def _too_large(name: str, size: int) -> DocumentError:
    reason = f"too large, {size:,} bytes or more; expected at most {limits.DOCUMENT_BYTES:,}"
    return DocumentError(name, reason, "split it into smaller files")


def special_kind(mode: int) -> str | None:
    """The kind of a path that is no regular file, in words; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def shown(path: Path | str) -> str:
    """A path for a one-line message: escaped where it has newlines or is not UTF-8."""
    name = os.fspath(path)
    return name if name.isprintable() else repr(name)
