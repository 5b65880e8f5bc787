"""Which page is made by which function."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from docsgen import changelog, picture
from docsgen.reference import (
    build_file,
    commands,
    http_paths,
    limits,
    metrics,
    python_api,
    recipes,
    settings,
    stages,
    support,
    versions,
)

PAGES: Mapping[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands.page,
    "docs/reference/settings.md": settings.page,
    "docs/reference/build-file.md": build_file.page,
    "docs/reference/recipes.md": recipes.page,
    "docs/reference/stages.md": stages.page,
    "docs/reference/http-paths.md": http_paths.page,
    "docs/reference/metrics.md": metrics.page,
    "docs/reference/limits.md": limits.page,
    "docs/reference/python.md": python_api.page,
    "docs/reference/support.md": support.page,
    "docs/reference/versions.md": versions.page,
    "docs/explanation/packages.svg": picture.page,
    "CHANGELOG.md": changelog.page,
}
"""By path from the repository's top. A new page is a module with ``page()`` and a line here."""
