"""The pages that are written from the code are what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docsgen import __main__ as docsgen
from docsgen import changelog, markdown
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


def test_a_fragment_without_a_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "changelog").mkdir()
    (tmp_path / "pyproject.toml").write_text((changelog.ROOT / "pyproject.toml").read_text())
    (tmp_path / "changelog/one.added.md").write_text("Something new.\n")
    (tmp_path / "changelog/two.fixed.md").write_text("Something mended.\n")
    section = changelog.unreleased(tmp_path)
    assert section == "## Unreleased\n\n### Added\n\n- Something new.\n\n### Fixed\n\n- Something mended."
    (tmp_path / "changelog/three.md").write_text("Something.\n")
    with pytest.raises(SystemExit, match=r"three\.md"):
        changelog.unreleased(tmp_path)


def test_what_was_released_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changelog, "ROOT", tmp_path)
    monkeypatch.setattr(changelog, "unreleased", lambda root: "## Unreleased\n\nNo significant changes.")
    released = "\n## 0.1.0\n\n### Added\n\n- Something.\n"
    (tmp_path / "CHANGELOG.md").write_text(f"anything\n\n{changelog.START}\n{released}")
    page = changelog.page()
    assert page.endswith(f"{changelog.START}\n{released}")
    assert "anything" not in page
    (tmp_path / "CHANGELOG.md").write_text(page)
    assert changelog.page() == page
