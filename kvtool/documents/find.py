"""Finds documents: arguments, folders and glob patterns become named files."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from kvtool import limits
from kvtool.documents.read import shown, special_kind
from kvtool.documents.walk import STORE_MARKER, walk
from kvtool.errors import DocumentError, UsageError


@dataclass(frozen=True)
class Found:
    """A document's name in the store, with ``/`` on every system, and the absolute path of its file.

    ``walked`` says that a folder or pattern led to it, so that nobody asked for this very file.
    """

    name: str
    path: Path
    walked: bool = False


def find(
    arguments: Iterable[str | os.PathLike[str]],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    cwd: str | os.PathLike[str] | None = None,
) -> tuple[list[Found], list[DocumentError], Counter[str]]:
    """The documents that ``arguments`` name, in the order of the arguments, sorted within each.

    A folder is walked by git's ignore rules; a file named outright is never ignored. A document is named by
    its path from ``cwd``, or, outside of it, from the parent of the argument it came by.

    Args:
        arguments: files, folders, or glob patterns such as ``docs/**/*.md``, which match as in a .gitignore.
        include: patterns as in a .gitignore on the document's name; where there are any, one must match.
        exclude: the same, and none may match.
        cwd: the working directory, by default the process's.

    Returns:
        The documents, an error for each argument or file that cannot be one, and how many entries of folders
        were passed over, by reason (hidden, ignored, excluded, store, special) or suffix.

    Raises:
        UsageError: ``include`` or ``exclude`` holds an invalid pattern.
    """
    here = Path(os.path.realpath(cwd or "."))
    included, excluded = _patterns("include", include), _patterns("exclude", exclude)
    errors: list[DocumentError] = []
    passed_over: Counter[str] = Counter()
    documents: dict[str, Found] = {}
    seen: dict[str, str] = {}
    for argument in arguments:
        try:
            files, walked = _expand(os.fspath(argument), here, errors, passed_over)
        except DocumentError as error:
            errors.append(error)
            continue
        for path, parent in files:
            name = path.relative_to(here if path.is_relative_to(here) else parent).as_posix()
            if (included and not included.match_file(name)) or excluded.match_file(name):
                passed_over["excluded"] += 1
                continue
            if (real := os.path.realpath(path)) in seen:
                if not walked and (first := documents.get(seen[real])):
                    documents[first.name] = Found(first.name, first.path)
                continue
            seen[real] = name
            if problem := _name_error(name, path, documents):
                errors.append(problem)
            else:
                documents[name] = Found(name, path, walked)
    return list(documents.values()), errors, passed_over


def _expand(
    argument: str, cwd: Path, errors: list[DocumentError], passed_over: Counter[str]
) -> tuple[list[tuple[Path, Path]], bool]:
    """The files of an argument, each with the folder that names it if it is outside ``cwd``; and whether it was walked.

    Raises ``DocumentError`` if it names none. Folders in it that cannot be read go to ``errors``.
    """
    if not argument or "\0" in argument:
        raise DocumentError(f"{argument!r}", "is not a path", "expected a file, a folder or a pattern")
    path = _absolute(argument, cwd)
    try:
        kind = special_kind(path.stat().st_mode)
    except OSError as error:
        if glob.has_magic(argument) and not os.path.lexists(path):
            return _expand_glob(argument, cwd, errors), True
        reason = (error.strerror or str(error)).lower()
        expected = f"expected a file or folder, looked for from {shown(cwd)}"
        raise DocumentError(shown(argument), f"{reason}; {expected}", "check the path") from None
    if kind is None:
        return [(path, path.parent)], False
    if kind != "directory":
        raise DocumentError(shown(argument), f"is a {kind}; expected a file or folder", "check the path")
    if os.path.lexists(path / STORE_MARKER):
        reason = "is a kvtool store; expected documents"
        raise DocumentError(shown(argument), reason, "name the folder they are in")
    return [(file, path.parent) for file in walk(path, cwd, errors, passed_over)], True


def _expand_glob(argument: str, cwd: Path, errors: list[DocumentError]) -> list[tuple[Path, Path]]:
    parts = Path(argument).parts
    plain = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = _absolute(os.path.join(*parts[:plain], ""), cwd) if plain else cwd  # noqa: PTH118
    matching = _patterns("glob", ["/" + "/".join(parts[plain:])])
    # What is passed over below the pattern's folder says little about the pattern, so it is not counted.
    walked = walk(base, cwd, errors, Counter()) if os.path.lexists(base) else []
    files = [file for file in walked if matching.match_file(file.relative_to(base).as_posix())]
    if not files:
        reason = "matches no documents, leaving aside hidden and ignored files"
        raise DocumentError(
            shown(argument), f"{reason}; expected at least one below {shown(base)}", "check the pattern"
        )
    return [(file, base.parent) for file in files]


def _absolute(argument: str, cwd: Path) -> Path:
    """An absolute path without ``..``; a symbolic link keeps its own name, by which the user knows it."""
    path = cwd / argument
    if path.name == "..":
        return Path(os.path.realpath(path))
    if ".." in path.parts or not path.is_relative_to(cwd):
        return Path(os.path.realpath(path.parent)) / path.name
    return path


def _patterns(option: str, patterns: Iterable[str]) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UsageError(option, error, "expected a pattern as in a .gitignore file") from error


def _name_error(name: str, path: Path, documents: dict[str, Found]) -> DocumentError | None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return DocumentError(f"{name!r}", "the name is not UTF-8; expected one that is", "rename the file")
    if size > limits.DOCUMENT_NAME_BYTES:
        return DocumentError(
            shown(name),
            f"the name has {size:,} bytes; expected at most {limits.DOCUMENT_NAME_BYTES:,}",
            "rename the file or work from a folder closer to it",
        )
    if name in documents:
        return DocumentError(
            shown(path),
            f"would be named {name!r}, as {shown(documents[name].path)} already is; expected one file for each name",
            "rename one, or work from a folder that holds both",
        )
    return None
