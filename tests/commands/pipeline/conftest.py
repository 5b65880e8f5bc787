"""A project of a few documents, built with the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

WORDS = "caches are computed once and loaded often, since documents hardly change. "

PROJECT = """
store = "kv"

[build]
documents = ["manual"]

[build.measure]
context = 128
tokens = 8

[[build.variants]]
recipe = "kivi"
bits = 4

[[build.variants]]
recipe = "lossless"
gate = { max_kl = 0.01 }
"""


@pytest.fixture
def project(corpus: Path) -> Path:
    """The folder, in which kvtool runs."""
    (corpus / "manual").mkdir()
    for number, name in enumerate("abc"):
        (corpus / f"manual/{name}.md").write_text(f"Page {number}: " + WORDS * (6 + number))
    (corpus / "kvtool.toml").write_text(PROJECT)
    return corpus


@pytest.fixture
def build(project: Path, cli: Callable[..., Any]) -> Callable[..., Mapping[str, Any]]:
    """Runs ``kvtool build --json``; gives what it prints."""

    def build(*args: str, code: int = 0) -> Mapping[str, Any]:
        printed: Mapping[str, Any] = json.loads(cli("build", "--json", *args, code=code).stdout)
        return printed

    return build


@pytest.fixture
def edit(project: Path) -> Callable[[str, str], None]:
    """Replaces one text in kvtool.toml by another."""

    def edit(old: str, new: str) -> None:
        file = project / "kvtool.toml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return edit
