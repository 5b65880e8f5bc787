"""Documents, questions and answers are others' text: here it loses what could harm where it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unicodedata import category

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """For a terminal: control characters could move the cursor or hide a line."""
    return "".join(c if c.isprintable() else REPLACEMENT for c in text)


def cleaned(value: Any) -> Any:
    """For a page, all strings within ``value``: no control characters but line breaks, no halves of surrogate pairs.

    HTML has no way to write the first, UTF-8 none for the second. What has a meaning in HTML stays: that is escaped.
    """
    if isinstance(value, str):
        harmless = (c in "\n\t" or category(c) not in ("Cc", "Cs") for c in value)
        return "".join(c if kept else REPLACEMENT for c, kept in zip(value, harmless, strict=True))
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value
