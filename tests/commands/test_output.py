"""What is printed where: JSON and data to stdout, notes and errors to stderr."""

from __future__ import annotations

import json

import pytest

from kvtool.commands.output import Lines, emit, exit_code, size, table
from kvtool.errors import DONE, FAILED, PARTLY, StoreError


def test_a_report_is_json_or_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(["a", "b"], ["note"])
    emit({"é": [1]}, lines, as_json=False)
    assert capsys.readouterr() == ("a\nb\n", "note\n")
    emit({"é": [1]}, lines, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"é": [1]}
    assert "é" in out
    assert err == ""


def test_problems_are_printed_and_decide_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    error = StoreError("a.md", "is\nnot there", "prefill it")
    assert exit_code([], done=0) == DONE
    assert capsys.readouterr() == ("", "")
    assert exit_code([error], done=1) == PARTLY
    assert exit_code([error, error], done=0) == FAILED
    assert capsys.readouterr() == ("", "error: a.md: is not there; prefill it\n" * 3)


def test_a_table_is_aligned_and_has_no_spaces_at_the_end() -> None:
    assert table([("name", "bits"), ("a", "4.25"), ("longer", "")]) == [
        "name    bits",
        "a       4.25",
        "longer",
    ]


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2.5e6, "2.5 MB"), (3e12, "3000.0 GB")]
)
def test_size(nbytes: float, text: str) -> None:
    assert size(nbytes) == text
