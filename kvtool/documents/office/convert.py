"""Converts documents in a process of their own, within bounds of time and memory, so that a broken one does no harm."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from functools import cache
from threading import Thread
from typing import NamedTuple
from warnings import catch_warnings, filterwarnings

# Unlike the standard library's, loky's processes do not run the caller's script again.
from loky.process_executor import ProcessPoolExecutor

from kvtool import limits
from kvtool.documents.office.docx import docx_text
from kvtool.documents.office.epub import epub_text
from kvtool.documents.office.notebook import notebook_text
from kvtool.documents.office.pptx import pptx_text
from kvtool.documents.office.rtf import rtf_text
from kvtool.documents.office.xlsx import xlsx_text
from kvtool.errors import DocumentError


class Format(NamedTuple):
    """A kind of document, what reads it, and the library which that needs from the extra ``office``."""

    kind: str
    read: Callable[[bytes, str, list[DocumentError]], str]
    library: str | None = None


WORD = Format("a Word document", docx_text, "mammoth")
POWERPOINT = Format("a PowerPoint presentation", pptx_text)
EXCEL = Format("an Excel workbook", xlsx_text, "openpyxl")
FORMATS = {
    ".docx": WORD,
    ".docm": WORD,
    ".pptx": POWERPOINT,
    ".pptm": POWERPOINT,
    ".ppsx": POWERPOINT,
    ".xlsx": EXCEL,
    ".xlsm": EXCEL,
    ".rtf": Format("rich text", rtf_text, "striprtf"),
    ".epub": Format("an e-book", epub_text),
    ".ipynb": Format("a notebook", notebook_text),
}
"""Formats by suffix."""

PICTURES = re.compile(
    rb"/media/|\\pict\b|\"image/|(?<!thumbnail)\.(?:jpe?g|png|gif|webp|svg)\b", re.IGNORECASE
)
"""The traces of pictures in files of these formats: names in a zip file, which are not packed, and keywords."""

INSTALL = "install it with: pip install 'kvtool[office]'"


def missing_library(suffix: str) -> str | None:
    """The library without which no file of this suffix can be read, if it is not installed."""
    library = FORMATS[suffix].library if suffix in FORMATS else None
    return library if library and importlib.util.find_spec(library) is None else None


def office_text(data: bytes, suffix: str, name: str, warnings: list[DocumentError]) -> str:
    """The text of a document of one of ``FORMATS``, empty if it is; what it may lack goes to ``warnings``.

    Raises:
        DocumentError: its library is missing; it is encrypted or broken, or holds pictures only; it exceeds a bound.
    """
    if library := missing_library(suffix):
        reason = f"is {FORMATS[suffix].kind}, which needs {library} to be read"
        raise DocumentError(name, reason, INSTALL)
    executor = _executor()
    bounds = f"{limits.CONVERSION_SECONDS:.0f} s and {limits.CONVERSION_BYTES >> 30} GiB"
    try:
        pending: Future[tuple[str, list[DocumentError]]] = executor.submit(convert, data, suffix, name)
        text, remarks = pending.result(limits.CONVERSION_SECONDS)
    except (TimeoutError, BrokenExecutor, MemoryError) as error:
        _end(executor)
        reason = f"cannot be converted within {bounds}"
        raise DocumentError(name, reason, "split it into smaller files, or save it as text") from error
    except KeyboardInterrupt:
        # Which only this process may have got. Its end would wait for the conversion's.
        _end(executor)
        raise
    warnings += remarks
    return text


def convert(data: bytes, suffix: str, name: str) -> tuple[str, list[DocumentError]]:
    """The text of a document, and the warnings about it, without bounds of time and memory."""
    warnings: list[DocumentError] = []
    kind = FORMATS[suffix].kind
    try:
        # What openpyxl says of features that it skips would come without the file's name.
        with catch_warnings(action="ignore"):
            text = FORMATS[suffix].read(data, name, warnings)
    except (DocumentError, MemoryError):
        raise
    except Exception as error:
        # A broken file can raise anything in the libraries: BadZipFile, ParseError, KeyError, RecursionError.
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        reason = f"is broken ({cause[:200]}); expected {kind}"
        raise DocumentError(name, reason, "open it in the program it is from and save it again") from None
    if not text.strip() and PICTURES.search(data):
        reason = f"has pictures and no text; expected {kind} with text"
        raise DocumentError(name, reason, "write their text into it, or leave it out")
    if len(text) > limits.DOCUMENT_BYTES:
        reason = f"too large, more than {limits.DOCUMENT_BYTES:,} characters of text"
        raise DocumentError(name, reason, "split it into smaller files")
    return text, warnings


@cache
def _executor() -> ProcessPoolExecutor:
    """One process for all documents, since starting it takes longer than most of them."""
    # loky replaces a process that a large document has made large, and would tell users so.
    filterwarnings("ignore", "A worker (stopped|was restarted) while", UserWarning)
    return ProcessPoolExecutor(
        1, timeout=60, initializer=_begin, initargs=(limits.CONVERSION_BYTES, os.getpid())
    )


def _end(executor: ProcessPoolExecutor) -> None:
    executor.shutdown(wait=True, kill_workers=True)
    _executor.cache_clear()


def _begin(nbytes: int, parent: int) -> None:
    """Bounds the process's memory, and its life by that of the process ``parent``, which may be killed."""
    Thread(target=_end_after, args=(parent,), daemon=True).start()
    # Some systems know the limit and do not let it be set.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
