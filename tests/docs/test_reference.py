"""The pages that are written from the code are what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docsgen import __main__ as docsgen
from docsgen import markdown
from docsgen.reference import settings
from kvtool.config import Settings


def test_every_page_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert docsgen.main(["--check"]) == 0, capsys.readouterr().err


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(docsgen, "ROOT", tmp_path)
    monkeypatch.setattr(docsgen, "PAGES", {"docs/made.md": lambda: "# Made\n\nnew\n"})
    return tmp_path / "docs/made.md"


def test_a_stale_page_is_named_with_the_command(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docsgen.main(["--check"]) == 1
    assert "docs/made.md is not what the code says; run python -m docsgen" in capsys.readouterr().err
    assert not page.exists()
    page.parent.mkdir()
    page.write_text("# Made\n\nold\n")
    assert docsgen.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert "-old" in said
    assert "+new" in said
    assert page.read_text() == "# Made\n\nold\n"


def test_pages_are_written_where_they_differ(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docsgen.main([]) == 0
    assert capsys.readouterr().out == "wrote docs/made.md\n"
    assert docsgen.main(["--check"]) == 0
    assert docsgen.main([]) == 0
    assert not capsys.readouterr().out


def test_every_setting_has_its_row() -> None:
    text = settings.page()
    for name in Settings.model_fields:
        assert f"| `{name}` |" in text
        assert f"| `KVTOOL_{name.upper()}` |" in text


def test_a_cell_is_one_line_and_its_bars_are_escaped() -> None:
    table = markdown.table(("a", "b"), [("x\n  y", "p | q")])
    assert table == "| a | b |\n| --- | --- |\n| x y | p \\| q |"
    assert not markdown.table(("a", "b"), [])


def test_stars_outside_of_code_are_literal() -> None:
    assert markdown.escaped("2**e, `2**e` and 2**f") == r"2\*\*e, `2**e` and 2\*\*f"
