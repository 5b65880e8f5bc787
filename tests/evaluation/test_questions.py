"""A file of questions is read as it was meant, or refused in one line that says where and what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.errors import UsageError
from kvtool.evaluation import questions
from kvtool.evaluation.questions import UserQuestion, read_questions

NAMES = ["docs/a.md", "docs/b.md", "c.txt"]
GOOD = {"document": "c.txt", "question": "Where did the ships go?"}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("questions.jsonl")


def read(file: Path, *lines: str | dict[str, Any]) -> list[UserQuestion]:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_bytes("\n".join(texts).encode())
    return read_questions(file, NAMES)


def test_reads_questions_and_turns(file: Path) -> None:
    turns = ["What is red?", "And what does it cost?"]
    conversation = {"document": "docs/a.md", "turns": turns, "segment": 2, "id": "x"}
    assert read(file, GOOD, "", conversation, " \t") == [
        UserQuestion("c.txt", None, ("Where did the ships go?",)),
        UserQuestion("docs/a.md", 2, tuple(turns), "x"),
    ]


def test_windows_line_ends_byte_order_mark_and_line_separators_in_strings(file: Path) -> None:
    line = json.dumps({**GOOD, "question": "één\u2028twee"}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    assert [one.turns for one in read_questions(file, NAMES)] == [("één\u2028twee",)] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"document": "c.txt"', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"document": "c.txt", "question": "a\0b"}', "is not JSON"),
        ('{"document": "c.txt", "question": "q", "segment": 1' + "0" * 5000 + "}", "is not JSON"),
        ('["c.txt", "Where?"]', r"is \['c.txt', 'Where\?'\]; expected an object"),
        ('{"document": "c.txt", "document": "c.txt", "question": "q"}', "field 'document' is given twice"),
        ({**GOOD, "segmnt": 1}, r"unknown field 'segmnt'; did you mean segment\?"),
        ({**GOOD, "xyz": 1}, "unknown field 'xyz'; there are: document, question, turns, segment, id"),
        ({"question": "q"}, 'has no field "document"'),
        ({**GOOD, "document": 3}, "document is 3; expected text"),
        ({**GOOD, "document": "docs/a.mkd"}, r"document 'docs/a.mkd': .* did you mean docs/a.md\?"),
        ({**GOOD, "document": "zzzz"}, "document 'zzzz': .* kvtool ls lists"),
        ({"document": "c.txt"}, 'has neither of the fields "question" and "turns"'),
        ({**GOOD, "turns": ["q"]}, 'has both of the fields "question" and "turns"'),
        ({**GOOD, "question": ""}, "question is ''; expected text"),
        ({**GOOD, "question": " \n"}, r"question is ' \\n'; expected text"),
        ({**GOOD, "question": ["q"]}, r"question is \['q'\]; expected text"),
        ({**GOOD, "question": "a\0b"}, "expected text without NUL"),
        ({**GOOD, "question": "\ud800"}, r"question is '\\ud800'; expected text without NUL and lone"),
        ({"document": "c.txt", "turns": []}, r"turns is \[\]; expected a list"),
        ({"document": "c.txt", "turns": "q"}, "turns is 'q'; expected a list"),
        ({"document": "c.txt", "turns": ["q", None]}, "turns, number 2 is None; expected text"),
        ({**GOOD, "segment": -1}, "segment is -1; expected a whole number from 0"),
        ({**GOOD, "segment": True}, "segment is True; expected a whole number"),
        ({**GOOD, "segment": 1.0}, "segment is 1.0; expected a whole number"),
        ({**GOOD, "id": 7}, "id is 7; expected text"),
    ],
)
def test_a_bad_line_is_named(file: Path, line: str | dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^questions.jsonl: line 3: .*{message}") as raised:
        read(file, GOOD, "", line)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 350


def test_an_id_is_given_once(file: Path) -> None:
    with pytest.raises(UsageError, match=r"^questions.jsonl: line 2: id 'x' was given to line 1 already"):
        read(file, {**GOOD, "id": "x"}, {**GOOD, "id": "x"})


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_questions(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"^questions.jsonl: has no questions; expected lines like"):
        read_questions(file, NAMES)


def test_a_file_that_cannot_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^questions.jsonl: no such file"):
        read_questions(file, NAMES)
    with pytest.raises(UsageError, match="is a directory"):
        read_questions(Path(), NAMES)
    file.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe")
    with pytest.raises(UsageError, match=r"^questions.jsonl: line 2: byte 0xff is not UTF-8"):
        read_questions(file, NAMES)
    monkeypatch.setattr(questions, "QUESTIONS_BYTES", 10)
    with pytest.raises(UsageError, match=r"^questions.jsonl: has 63 bytes; expected at most 10"):
        read_questions(file, NAMES)


@given(st.binary(max_size=200) | st.text('{}[]":,\\ dcqtu0\n', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"any\.jsonl: "):
        read_questions(file, NAMES)
