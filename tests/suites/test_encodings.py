"""Texts in every encoding that Python has are never wrong without a word. ``make encodings`` also tries chardet's test files."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.suites import encodings_report
from tests.suites.encodings import REFUSED, RIGHT, UNKNOWABLE, WRONG, Case, made, verdict

EBCDIC = {"cp037", "cp1026", "cp1140", "cp273", "cp424", "cp500"}
UNREADABLE = EBCDIC | {"utf_16_be", "utf_16_le", "utf_32_be", "utf_32_le"}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, str]]:
    # A fifth of them, of all groups and languages: their numbers have no common divisor with five.
    folder = tmp_path_factory.mktemp("encodings")
    return [(case, verdict(case, folder)) for case in islice(made(), 0, None, 5)]


def test_no_text_is_wrong_without_a_word(verdicts: list[tuple[Case, str]]) -> None:
    wrong = {(case.encoding, case.group) for case, state in verdicts if state == WRONG}
    assert wrong <= UNKNOWABLE


def test_what_is_given_or_marked_is_read_right(verdicts: list[tuple[Case, str]]) -> None:
    groups = ("--encoding", "byte order mark")
    assert {state for case, state in verdicts if case.group in groups} == {RIGHT}


def test_declarations_are_believed_wherever_they_can_be_read(verdicts: list[tuple[Case, str]]) -> None:
    groups = ("XML declaration", "meta charset", "comment")
    for case, state in verdicts:
        if case.group in groups:
            # EBCDIC, and UTF-16 and 32 without a mark, have other bytes for the declaration itself.
            assert state == (REFUSED if case.encoding in UNREADABLE else RIGHT), case


def test_a_text_that_is_wrong_without_a_word_fails(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [Case("koi8-r", "folder", b"caf", "caf"), Case("koi8-r", "folder", b"caf", "caf\xe9")]
    counts = encodings_report.counted(cases)
    assert not encodings_report.passes(({}, counts))
    assert "| folder | 1 | 0 | 0 | 0 | 1 |" in encodings_report.page(({}, counts))
    assert "silently wrong: koi8-r, folder: 'caf\xe9'" in capsys.readouterr().err
    assert encodings_report.passes(({}, encodings_report.counted(cases[:1])))
