"""What is printed where: JSON and data to stdout, notes and errors to stderr."""

from __future__ import annotations

import json
from itertools import product

import pytest

from kvtool.commands import output
from kvtool.commands.output import Bar, Lines, emit, exit_code, size, table
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


@pytest.mark.parametrize("terminal", [False, True])
def test_any_progress_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(Bar, "EVERY", 0.0)
    amounts = [5, 0, -3, 1e-300, 1e-9, 0.5, 100, 7, 1e18]
    with Bar("evaluating") as bar:
        assert bool(bar.bar) == terminal
        for done, total in product(amounts, amounts):
            bar.update(done, total, "tokens")
        bar.started += 1e9  # a clock that went backwards
        bar.update(5, 10, "tokens")
    assert terminal or "evaluating: 0 of 5 tokens\n" in capsys.readouterr().err


def test_nothing_moves_where_people_asked_for_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(Bar, "EVERY", 0.0)
    monkeypatch.setattr(output, "quiet", True)
    with Bar("evaluating") as bar:
        assert bar.bar is None
        bar.update(1, 10, "tokens")
    emit({}, Lines(["data"], ["note"], ["failed"]), as_json=False)
    assert exit_code([StoreError("a.md", "is not there")], done=0) == FAILED
    assert capsys.readouterr() == ("data\n", "failed\nerror: a.md: is not there\n")


def test_the_first_progress_may_come_late_with_nothing_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("kvtool.commands.output.time.monotonic", lambda: now)
    with Bar("evaluating") as bar:
        now += 30
        bar.update(0, 40, "trials")
        now += 10
        bar.update(20, 40, "trials")
    assert capsys.readouterr().err == (
        "evaluating: 0 of 40 trials\nevaluating: 20 of 40 trials, 0.5 a second, 40 s left\n"
    )


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\nb\u202e\x1b[31m\udcff ünï 文.md"
    emit({}, Lines([name], [name]), as_json=False)
    line = "a\\nb\\u202e\\x1b[31m\\udcff ünï 文.md\n"
    assert capsys.readouterr() == (line, line)
