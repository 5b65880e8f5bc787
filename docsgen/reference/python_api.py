"""The public Python names; mkdocstrings fills in their docstrings when the site is built."""

from __future__ import annotations

import kvtool
from docsgen.markdown import page as whole_page
from kvtool import codecs

INTRO = """What can be imported, and keeps its meaning between releases. Everything else is kvtool's own and may move."""


def page() -> str:
    return whole_page(
        "Python",
        "kvtool/__init__.py and codecs/__init__.py",
        INTRO,
        "## kvtool",
        *(f"::: kvtool.{name}" for name in kvtool.__all__ if name != "codecs" and not name.startswith("_")),
        "## kvtool.codecs",
        docstring_of_codecs(),
        *(f"::: kvtool.codecs.{name}" for name in codecs.__all__),
    )


def docstring_of_codecs() -> str:
    return (codecs.__doc__ or "").strip().replace("``", "`")
