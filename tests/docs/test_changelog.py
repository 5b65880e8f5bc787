"""The changelog: fragments are gathered, and a release puts them under its heading."""

from __future__ import annotations

from pathlib import Path

import pytest

from docsgen import changelog
from docsgen.release import release

SECTION = "### Added\n\n- Something new.\n\n### Fixed\n\n- Something mended."


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of version 0.1.0 with two fragments and no release."""
    (tmp_path / "changelog").mkdir()
    settings = (changelog.ROOT / "pyproject.toml").read_text().partition("[tool.towncrier]")
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "kvtool"\nversion = "0.1.0"\n\n{settings[1]}{settings[2]}'
    )
    (tmp_path / "changelog/one.added.md").write_text("Something new.\n")
    (tmp_path / "changelog/two.fixed.md").write_text("Something mended.\n")
    monkeypatch.setattr(changelog, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(changelog.page())
    return tmp_path


def test_fragments_are_unreleased(root: Path) -> None:
    assert changelog.unreleased(root) == f"## Unreleased\n\n{SECTION}"


def test_a_fragment_without_a_kind_is_refused(root: Path) -> None:
    (root / "changelog/three.md").write_text("Something.\n")
    with pytest.raises(SystemExit, match=r"three\.md"):
        changelog.unreleased(root)


def test_a_release_has_a_heading_with_its_date(root: Path) -> None:
    release("0.1.0", "2026-01-02", root)
    assert not list((root / "changelog").iterdir())
    page = changelog.page()
    assert page.endswith(f"{changelog.START}\n\n## 0.1.0 (2026-01-02)\n\n{SECTION}\n")
    assert "## Unreleased\n\nNo significant changes." in page
    assert 'version = "0.1.0"' in (root / "pyproject.toml").read_text()


def test_releases_stand_one_above_the_other(root: Path) -> None:
    release("0.1.0", "2026-01-02", root)
    (root / "changelog/three.changed.md").write_text("Something else.\n")
    release("0.2.0", "2026-02-03", root)
    page = changelog.page()
    assert (
        page.index("## Unreleased")
        < page.index("## 0.2.0 (2026-02-03)")
        < page.index("## 0.1.0 (2026-01-02)")
    )
    (root / "CHANGELOG.md").write_text(page)
    assert changelog.page() == page
    assert 'version = "0.2.0"' in (root / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("next", "is no version"),
        ("v0.2.0", "packages write it 0.2.0"),
        ("0.0.9", "is smaller than 0.1.0"),
        ("0.1.0", "is in CHANGELOG.md already"),
    ],
)
def test_what_cannot_be_the_next_version_changes_nothing(root: Path, version: str, says: str) -> None:
    (root / "CHANGELOG.md").write_text(changelog.page() + "\n## 0.1.0 (2026-01-02)\n")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=says):
        release(version, "2026-01-02", root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
