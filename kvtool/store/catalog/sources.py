"""Records of the files that documents were made from, so that two files of one name do not replace each other silently.

They are the store's own notes and no part of a document: servers do not show them, and ``kvtool pull`` does not copy them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from kvtool.digest import canonical_json
from kvtool.store.layout import SOURCES, note_file
from kvtool.store.manifest import Document
from kvtool.system import files


class Sources:
    """The file that each document of the store in ``root`` was made from.

    Paths are relative to the store, so that a folder that holds both can be moved. A record counts only for the text that
    it was made with: whatever else replaces a document leaves it without one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, document: Document) -> Path | None:
        """The file, which may be missing by now; None if it is not known."""
        try:
            record = json.loads((self.root / note_file(SOURCES, document.name)).read_bytes())
            if record["text"] == document.text_digest:
                return Path(os.path.normpath(Path(os.path.realpath(self.root)) / record["path"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # No record is needed to read a document, so a broken one is none.
        return None

    def put(self, document: Document, path: Path) -> None:
        relative = os.path.relpath(path, os.path.realpath(self.root))
        record = {"text": document.text_digest, "path": relative}
        files.write_atomic(self.root / note_file(SOURCES, document.name), [canonical_json(record) + b"\n"])

    def discard(self, name: str) -> None:
        (self.root / note_file(SOURCES, name)).unlink(missing_ok=True)


def other_file(source: Path | None, path: Path | None) -> Path | None:
    """The ``source`` of a document, if it is known and is not the file at ``path``, which is None for what is no file's."""
    if source is None or source == path or (path and source.exists() and source.samefile(path)):
        return None
    return source
