"""Documents, questions and answers are others' text: here it loses what could harm where it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unicodedata import category


def printable(text: str) -> str:
    """For a terminal: control characters could move the cursor or hide a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def cleaned(value: Any) -> Any:
    """For a page, all strings within ``value``: no control characters but line breaks, no halves of surrogate pairs.

    HTML has no way to write the first, UTF-8 none for the second. What has a meaning in HTML stays: that is escaped.
    """
    if isinstance(value, str):
        return "".join(
            c if c in "\n\t" or category(c) not in ("Cc", "Cs") else "\N{REPLACEMENT CHARACTER}"
            for c in value
        )
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value
