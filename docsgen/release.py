"""A release's part in the repository: its version in pyproject.toml, and the fragments under its heading in the changelog."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.version import InvalidVersion, Version

from docsgen import changelog


def release(version: str, date: str, root: Path = changelog.ROOT) -> None:
    """Changes the two files, and removes the fragments. Exits, changing nothing, if this cannot be the next version."""
    project = root / "pyproject.toml"
    text = project.read_text()
    present = tomllib.loads(text)["project"]["version"]
    refuse(version, present, (root / "CHANGELOG.md").read_text())
    changelog.towncrier(root, "--yes", "--version", version, "--date", date)
    line = re.compile(rf'^version = "{re.escape(present)}"$', re.MULTILINE)
    project.write_text(line.sub(f'version = "{version}"', text, count=1))


def refuse(version: str, present: str, released: str) -> None:
    """Exits unless ``version`` is as Python's packages write versions, no smaller than the present one, and not yet released."""
    try:
        parsed = Version(version)
    except InvalidVersion:
        raise SystemExit(f"{version}: is no version; expected one like {present}") from None
    if str(parsed) != version:
        raise SystemExit(f"{version}: packages write it {parsed}; take that")
    if parsed < Version(present):
        raise SystemExit(f"{version}: is smaller than {present} in pyproject.toml; take a larger one")
    if f"\n## {version} (" in released:
        raise SystemExit(f"{version}: is in CHANGELOG.md already; take a larger one")
