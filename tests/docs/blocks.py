"""Fenced blocks of pages, and the commands in them.

A comment of HTML before a block, which readers do not see, says what it needs. Several needs are separated by semicolons:

======================================  ==========================================================================
``<!-- test: after COMMANDS -->``       these commands are run first
``<!-- test: server [STORE] -->``       a server over kv-store or this store, at http://127.0.0.1:8400
``<!-- test: bucket -->``               the bucket s3://caches, with that store in s3://caches/guides
``<!-- test: alternatives -->``         each command begins with the store as the block found it
``<!-- test: exit 4 -->``               the last command ends with this code
``<!-- test: expect EXPRESSION -->``    this is true after a block of Python
``<!-- test: file NAME -->``            nothing is run: the block is what this file of the reader holds
``<!-- test: parse: REASON -->``        the block is not run, for this reason: its commands and flags are checked
======================================  ==========================================================================

Without one, the block is run as it is written.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(
    r"^(?:<!-- test: (?P<needs>[^\n]*?) -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
INLINE = re.compile(r"`(kvtool [a-z][^`]+)`")
NEED = re.compile(r"(?P<word>server|bucket|alternatives|after|exit|expect|file|parse):?(?: (?P<detail>.+))?")


@dataclass(frozen=True)
class Block:
    """``needs`` is what its comment says: words, each with its detail, as ``{"exit": "4"}``."""

    page: Path
    line: int
    language: str
    text: str
    needs: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a shell: its words, the command whose output it reads, and the file that takes its own."""

    words: tuple[str, ...]
    input: Command | None = None
    output: str | None = None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCED.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(page, line, match["language"], match["text"], _needs(match["needs"] or ""))


def _needs(comment: str) -> dict[str, str]:
    needs = {}
    for part in filter(None, comment.split("; ")):
        match = NEED.fullmatch(part)
        assert match, f"what does a block need that says {part!r}?"
        needs[match["word"]] = match["detail"] or ""
    assert needs.get("parse") != "", f"{comment}: why is the block not run?"
    assert needs.get("exit", "0").isdigit(), f"{comment}: which exit code?"
    return needs


def inline_commands(page: Path) -> Iterator[str]:
    """What pages say of kvtool's commands within sentences and tables."""
    for match in INLINE.findall(FENCED.sub("", page.read_text())):
        yield from (part.strip() for part in match.split("&&"))


def commands(text: str) -> Iterator[Command]:
    """The commands of a block of a shell, in their order."""
    for line in _logical_lines(text):
        words = _words(line)
        while words:
            pipeline = list(takewhile(lambda word: word not in ("&&", ";"), words))
            words = words[len(pipeline) + 1 :]
            yield _piped(pipeline)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines with those that continue them: after a backslash, or within quotes."""
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting += line
        try:
            _words(waiting)
        except ValueError:
            waiting += "\n"
        else:
            yield waiting
            waiting = ""
    assert not waiting, waiting


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;>")
    lexer.whitespace_split = True
    return list(lexer)


def _piped(words: Sequence[str]) -> Command:
    command: Command | None = None
    while words:
        first = list(takewhile(lambda word: word != "|", words))
        words = words[len(first) + 1 :]
        output = first[first.index(">") + 1] if ">" in first else None
        command = Command(tuple(takewhile(lambda word: word != ">", first)), command, output)
    assert command
    return command
