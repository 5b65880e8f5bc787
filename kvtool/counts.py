"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, one: str, several: str = "") -> str:
    """The number and the word for so many, ``one`` with an s by default: "1 document", "1,024 tokens"."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {several or one + 's'}"
