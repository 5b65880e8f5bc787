"""The contract of backends whose files can be written, with conditions: what a bucket must be able to do."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from pathlib import Path

from kvtool.errors import StoreError
from kvtool.store import layout
from kvtool.store.backends.counted import OnBytes
from kvtool.store.backends.files import FileBackend


class Conflict(StoreError):
    """A file is not, or no longer, what the writer has seen."""


class WritableFiles(FileBackend):
    """Files of a store that is made where there is none, with ``new``."""

    def start(self) -> None:
        """Makes the store unless there is one. Raises ``StoreError`` for a place that does not keep conditions.

        There, of two writers' changes one would be lost without a word.
        """
        marker = self.marker.to_bytes()
        if self.nbytes_of(layout.MARKER) is None:
            with suppress(Conflict):
                self.swap(layout.MARKER, marker, None)
        if self.is_new and (made := self._read_marker()) != self.marker:
            self.marker = made
            raise StoreError(
                self.url, "was made by another at the same time, with another key or none", "push again"
            )
        self.is_new = False
        for version, condition in ((None, "if it was missing"), (self.stale, "if it was another")):
            try:
                self.swap(layout.MARKER, marker, version)
            except Conflict:
                continue
            raise StoreError(
                self.url,
                f"ignores conditions: it replaced a file that was to be written only {condition}",
                "use a service with conditional writes, as S3, Google and Azure have, or push from one machine into a directory",
            )

    @property
    @abstractmethod
    def stale(self) -> str:
        """A version that no file has."""

    @abstractmethod
    def nbytes_of(self, file: str) -> int | None:
        """A file's size; None if there is none."""

    @abstractmethod
    def put(self, file: str, path: Path, on_bytes: OnBytes) -> None:
        """Copies a file from this machine, whose name is its content's digest: whoever writes it writes the same.

        ``on_bytes`` gets the number of bytes of each piece that is taken. What it raises ends the copy.
        """

    @abstractmethod
    def versioned(self, file: str) -> tuple[bytes, str] | None:
        """A manifest and its version, for ``swap``; None if there is none."""

    @abstractmethod
    def swap(self, file: str, data: bytes, version: str | None) -> None:
        """Replaces a file of that version, or writes one that is missing. Raises ``Conflict`` if it is another by now."""
