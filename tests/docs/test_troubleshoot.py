"""What the page of errors quotes is what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs/how-to/troubleshoot.md"
HEADINGS = re.findall(r"^### (.*)$", PAGE.read_text(), re.MULTILINE)
QUOTED = [match[1] for heading in HEADINGS if (match := re.fullmatch(r"`([^`]+)`", heading))]


def texts(path: Path) -> Iterator[str]:
    """Strings of a module without docstrings; in those with values in them, these are an ellipsis."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@cache
def all_texts() -> tuple[str, ...]:
    return tuple(text for path in (ROOT / "kvtool").rglob("*.py") for text in texts(path))


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_is_one_that_kvtool_has(message: str) -> None:
    # A value within a message stands for anything.
    pattern = re.compile(".*".join(map(re.escape, message.split(" … "))))
    assert any(pattern.search(text) for text in all_texts()), f"no message of kvtool says {message!r}"


def test_nearly_all_headings_are_messages() -> None:
    assert len(QUOTED) > 30
    assert set(HEADINGS) - {f"`{message}`" for message in QUOTED} == {"`cached_tokens` is 0"}


def test_strings_with_values_are_found(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text('"""What a module says."""\nraise E(f"has {n} of "\n  f"{m:,} bytes", "too few")\n')
    found = set(texts(path))
    assert {"has … of … bytes", "too few"} <= found
    assert "What a module says." not in found
