"""Loads documents: what paths name becomes texts, with an account of what was not read, or not wholly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kvtool.documents.find import Found, find
from kvtool.documents.office.convert import INSTALL, missing_library
from kvtool.documents.read import BlankFile, read_text, shown, text_of
from kvtool.errors import DocumentError, KvtoolError


@dataclass
class Account:
    """What became of the files that are not simply texts now.

    ``problems`` are those that cannot be read, ``warnings`` those that were not read wholly, or not surely.
    ``passed_over`` counts what a walk left out, by reason or suffix.
    """

    problems: list[KvtoolError] = field(default_factory=list)
    warnings: list[DocumentError] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


class Loaded(NamedTuple):
    """A document's text, and the file that it is from, if it is a file's."""

    name: str
    text: str
    path: Path | None


class NamedBytes(NamedTuple):
    """The bytes of a document that is no file, and a name, whose ending says what format they are in."""

    name: str
    data: bytes


def load(
    paths: Iterable[str | Path | NamedBytes],
    account: Account,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    encoding: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Loaded]:
    """The name and text of each document in or under ``paths`` (see ``find``), one at a time; ``account`` gets the rest.

    An empty file that a walk came upon is passed over: an ``__init__.py`` has no text, and nobody asked for it. One
    that is named outright is a problem. So are paths under which there is nothing to read: as with a pattern that
    matches nothing, a wrong folder or an ignore rule is the likely cause, and later steps must not run on nothing.

    ``on_progress`` gets how many files are done and how many there are, before each and after the last.
    """
    sent: list[NamedBytes] = []
    names: list[str | Path] = []
    for path in paths:
        if isinstance(path, NamedBytes):
            sent.append(path)
        else:
            names.append(path)
    n_texts = 0
    files, errors, passed_over = find(names, include=include, exclude=exclude)
    account.problems += errors
    account.passed_over.update(passed_over)
    for suffix, count in passed_over.items():
        if library := missing_library(suffix):
            reason = f"{count:,} of these files were passed over, since {library} is missing"
            account.warnings.append(DocumentError(suffix, reason, INSTALL))
    documents: list[Found | NamedBytes] = [*sent, *files]
    for done, document in enumerate(documents):
        on_progress(done, len(documents))
        try:
            loaded = _read(document, account.warnings, encoding)
        except BlankFile as error:
            if isinstance(document, Found) and document.walked:
                account.passed_over["empty"] += 1
            else:
                account.problems.append(error)
        except DocumentError as error:
            account.problems.append(error)
        else:
            n_texts += 1
            yield loaded
    on_progress(len(documents), len(documents))
    if not n_texts and not account.problems:
        account.problems.append(_nothing_to_read(names, account.passed_over))


def _read(document: Found | NamedBytes, warnings: list[DocumentError], encoding: str | None) -> Loaded:
    if isinstance(document, Found):
        return Loaded(document.name, read_text(document.path, warnings, encoding), document.path)
    name, data = document
    return Loaded(name, text_of(data, PurePosixPath(name).suffix, shown(name), warnings, encoding), None)


def _nothing_to_read(paths: Sequence[str | Path], passed_over: Counter[str]) -> DocumentError:
    """Names what was looked through, and what was passed over there, the most frequent first."""
    subject = ", ".join(map(shown, paths[:3])) + (", …" if len(paths) > 3 else "")
    counts = ", ".join(f"{count:,} {what}" for what, count in passed_over.most_common())
    reason = f"no documents found; passed over: {counts or 'nothing, it is empty'}"
    return DocumentError(subject, reason, "check the path and the ignore rules, or name the files themselves")
