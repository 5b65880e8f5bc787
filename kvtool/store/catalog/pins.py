"""Pinned documents, which making room leaves alone. As ``sources``, pins are the store's own notes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvtool.store.layout import MANIFESTS, PINS, document_name, note_file
from kvtool.system import files


class Pins:
    """The names of pinned documents of the store in ``root``: one empty file each. They may be of documents to come."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __contains__(self, name: str) -> bool:
        return (self.root / note_file(PINS, name)).is_file()

    def __iter__(self) -> Iterator[str]:
        """In order."""
        notes = (path.relative_to(self.root / PINS).as_posix() for path in (self.root / PINS).rglob("*.json"))
        yield from sorted(document_name(f"{MANIFESTS}/{note}") for note in notes)

    def add(self, name: str) -> None:
        files.write_atomic(self.root / note_file(PINS, name), [])

    def discard(self, name: str) -> None:
        (self.root / note_file(PINS, name)).unlink(missing_ok=True)
