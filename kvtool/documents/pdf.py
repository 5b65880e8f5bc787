"""The text of a PDF, page by page, through pypdf."""

from __future__ import annotations

import io
import logging

from kvtool import limits
from kvtool.errors import DocumentError


def pdf_text(data: bytes, name: str, warnings: list[DocumentError]) -> str:
    """The text of all pages, a blank line between them. Pages without text go to ``warnings``.

    Raises:
        DocumentError: pypdf is not installed; the PDF needs a password, is broken, or holds no text.
    """
    try:
        import pypdf
    except ImportError:
        reason = "is a PDF, which needs pypdf to be read"
        raise DocumentError(name, reason, "install it with: pip install 'kvtool[pdf]'") from None
    # It warns of every oddity that it mended, on stderr, without the file's name.
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    pages: list[str] = []
    size = 0
    try:
        # It tries the empty password itself, which opens a PDF that only restricts printing and copying.
        reader = pypdf.PdfReader(io.BytesIO(data))
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            size += len(pages[-1])
            if size > limits.DOCUMENT_BYTES:
                break
    except (pypdf.errors.FileNotDecryptedError, pypdf.errors.DependencyError):
        reason = "is encrypted; expected a PDF that opens without a password"
        raise DocumentError(name, reason, "save it without one") from None
    except Exception as error:
        # pypdf documents that a broken file can raise anything: TypeError, KeyError, RecursionError.
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        reason = f"is broken ({cause[:200]}); expected a PDF"
        raise DocumentError(name, reason, "open it in a viewer and save it again") from error
    if size > limits.DOCUMENT_BYTES:
        reason = f"too large, more than {limits.DOCUMENT_BYTES:,} characters of text"
        raise DocumentError(name, reason, "split the PDF into smaller ones")
    if not size:
        reason = f"has no text in its {len(pages)} pages, probably scanned images; expected a PDF with text"
        raise DocumentError(name, reason, "run OCR on it (for example ocrmypdf) or leave it out")
    if blank := [number for number, page in enumerate(pages, 1) if not page]:
        numbers = _ranges(blank)
        reason = f"has no text on {len(blank):,} of its {len(pages):,} pages ({numbers}), which are blank or scanned images"
        warnings.append(DocumentError(name, reason, "run OCR on it (for example ocrmypdf) if they hold text"))
    # Fonts can map glyphs to halves of a surrogate pair, which no tokenizer takes.
    text = "\n\n".join(page for page in pages if page)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in words, such as "2-4, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
