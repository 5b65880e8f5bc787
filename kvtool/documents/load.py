"""Loads documents: what paths name becomes texts, with an account of what was not read, or not wholly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvtool.documents.find import find
from kvtool.documents.read import BlankFile, read_text
from kvtool.errors import DocumentError, KvtoolError


@dataclass
class Account:
    """What became of the files that are not simply texts now.

    `problems` are those that cannot be read, `warnings` those that were not read wholly, or not surely.
    `passed_over` counts what a walk left out, by reason or suffix.
    """

    problems: list[KvtoolError] = field(default_factory=list)
    warnings: list[DocumentError] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def load(
    paths: Iterable[str | Path],
    account: Account,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    encoding: str | None = None,
) -> Iterator[tuple[str, str]]:
    """The name and text of each document under `paths` (see `find`), one at a time; `account` gets the rest.

    An empty file that a walk came upon is passed over: an `__init__.py` has no text, and nobody asked for it. One
    that is named outright is a problem.
    """
    documents, errors, passed_over = find(paths, include=include, exclude=exclude)
    account.problems += errors
    account.passed_over.update(passed_over)
    for document in documents:
        try:
            text = read_text(document.path, account.warnings, encoding)
        except BlankFile as error:
            if document.walked:
                account.passed_over["empty"] += 1
            else:
                account.problems.append(error)
        except DocumentError as error:
            account.problems.append(error)
        else:
            yield document.name, text
