"""The contract of backends whose files can be written, with conditions: what a bucket must be able to do."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from kvtool.digest import canonical_json
from kvtool.errors import StoreError
from kvtool.store import layout
from kvtool.store.backends.files import FileBackend


class Conflict(StoreError):
    """A file is not, or no longer, what the writer has seen."""


class WritableFiles(FileBackend):
    """Files of a store that is made where there is none, with ``new``."""

    def start(self) -> None:
        """Makes the store unless there is one. Raises ``StoreError`` for a place that does not keep conditions.

        There, of two writers' changes one would be lost without a word.
        """
        marker = canonical_json({"format": layout.FORMAT}) + b"\n"
        if self.nbytes_of(layout.MARKER) is None:
            try:
                self.swap(layout.MARKER, marker, None)
            except Conflict:
                return
        try:
            self.swap(layout.MARKER, marker, None)
        except Conflict:
            return
        raise StoreError(
            self.url,
            "ignores conditions: it replaced a file that was to be written only if it was missing",
            "use a service with conditional writes, as S3, Google and Azure have, or push from one machine into a directory",
        )

    @abstractmethod
    def nbytes_of(self, file: str) -> int | None:
        """A file's size; None if there is none."""

    @abstractmethod
    def put(self, file: str, path: Path) -> None:
        """Copies a file from this machine, whose name is its content's digest: whoever writes it writes the same."""

    @abstractmethod
    def versioned(self, file: str) -> tuple[bytes, str] | None:
        """A manifest and its version, for ``swap``; None if there is none."""

    @abstractmethod
    def swap(self, file: str, data: bytes, version: str | None) -> None:
        """Replaces a file of that version, or writes one that is missing. Raises ``Conflict`` if it is another by now."""
