"""A user's own questions: a file with one JSON object in each line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtool.documents.read import read_bytes, shown
from kvtool.errors import DocumentError, UsageError
from kvtool.limits import QUESTIONS_BYTES

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FIELDS = ("document", "question", "turns", "segment", "id")
KNOWN = f"there are: {', '.join(FIELDS)}"
EXAMPLE = '{"document": "docs/a.md", "question": "…"}'


@dataclass(frozen=True)
class UserQuestion:
    """One question about a document, or a conversation's turns. ``segment`` is None if none was named."""

    document: str
    segment: int | None
    turns: tuple[str, ...]
    id: str | None = None


def read_questions(path: Path, names: Collection[str]) -> list[UserQuestion]:
    """Reads the questions of ``path``, all about documents in ``names``. Blank lines are left out.

    Each line has ``document`` and either ``question`` or ``turns``, a list of them, and may have ``segment`` and ``id``.
    Raises ``UsageError``, naming file, line and field.
    """
    lines = _text(path).split("\n")  # not splitlines, whose further line ends may stand within JSON's strings
    questions: list[UserQuestion] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = _question(line, names)
            if question.id is not None and (first := line_of.setdefault(question.id, number)) != number:
                reason = f"id {question.id!r} was given to line {first} already"
                raise _Wrong(f"{reason}; expected another; change one")
        except _Wrong as wrong:
            raise UsageError(shown(path), f"line {number}: {wrong}") from None
        questions.append(question)
    if not questions:
        raise UsageError(shown(path), f"has no questions; expected lines like {EXAMPLE}", "write one or more")
    return questions


class _Wrong(ValueError):
    """An error in a line. ``read_questions`` adds the file and the line."""


def _text(path: Path) -> str:
    try:
        data = read_bytes(path).removeprefix(BYTE_ORDER_MARK)
    except DocumentError as error:
        raise UsageError(error.subject, error.reason, error.remedy) from None
    if len(data) > QUESTIONS_BYTES:
        reason = f"has {len(data):,} bytes; expected at most {QUESTIONS_BYTES:,}"
        raise UsageError(shown(path), reason, "split it into smaller files")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"line {line}: byte {data[error.start]:#04x} is not UTF-8; expected UTF-8"
        raise UsageError(shown(path), reason, "save the file as that") from None


def _question(line: str, names: Collection[str]) -> UserQuestion:
    fields = _object(line)
    for field in fields:
        if field not in FIELDS:
            raise _Wrong(f"unknown field {_short(field)}; {_near(field, FIELDS, KNOWN)}")
    if "document" not in fields:
        raise _Wrong(f'has no field "document"; expected a document of the store, as in {EXAMPLE}; add it')
    document = _string(fields, "document")
    if document not in names:
        hint = _near(document, names, "kvtool ls lists what is in the store")
        raise _Wrong(f"document {_short(document)}: is not among the documents that are evaluated; {hint}")
    id = _string(fields, "id") if "id" in fields else None
    return UserQuestion(document, _segment(fields), _turns(fields), id)


def _object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line, object_pairs_hook=_once)
    except _Wrong:
        raise
    except (ValueError, RecursionError) as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        reason = f"is not JSON ({why}): {_short(line)}"
        raise _Wrong(f"{reason}; expected {EXAMPLE}; correct or remove it") from None
    if not isinstance(fields, dict):
        raise _Wrong(f"is {_short(fields)}; expected an object, {EXAMPLE}; correct or remove it")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Wrong(f"field {_short(twice)} is given twice; expected it once; remove one")
    return fields


def _turns(fields: dict[str, Any]) -> tuple[str, ...]:
    if ("question" in fields) == ("turns" in fields):
        both = "both" if "question" in fields else "neither"
        raise _Wrong(f'has {both} of the fields "question" and "turns"; expected one of them; give one')
    if "question" in fields:
        return (_string(fields, "question"),)
    turns = fields["turns"]
    if not isinstance(turns, list) or not turns:
        raise _Wrong(f'turns is {_short(turns)}; expected a list of questions, ["…", "…"]; correct it')
    numbered = {f"turns, number {n}": turn for n, turn in enumerate(turns, 1)}
    return tuple(_string(numbered, field) for field in numbered)


def _segment(fields: dict[str, Any]) -> int | None:
    if "segment" not in fields:
        return None
    segment = fields["segment"]
    if not isinstance(segment, int) or isinstance(segment, bool) or segment < 0:
        expected = "expected a whole number from 0 (kvtool show lists a document's segments)"
        raise _Wrong(f"segment is {_short(segment)}; {expected}; correct it")
    return segment


def _string(fields: dict[str, Any], field: str) -> str:
    value = fields[field]
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"{field} is {_short(value)}; expected text; write it, or remove the line")
    # No tokenizer takes half of a surrogate pair, and what follows a NUL is lost in some.
    if re.search("[\0\ud800-\udfff]", value):
        reason = f"{field} is {_short(value)}"
        raise _Wrong(f"{reason}; expected text without NUL and lone surrogates; remove them")
    return value


def _near(name: str, known: Collection[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def _short(value: object) -> str:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
