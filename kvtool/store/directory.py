"""The directory of a local store: its marker, and the lock that tells living writers from killed ones.

Readers need no lock. Writers share one, so that what a killed writer left is told apart from what a living one is writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtool.digest import canonical_json
from kvtool.errors import StoreError
from kvtool.store.layout import FORMAT, MARKER, check_format
from kvtool.system import files


class StoreDirectory:
    """``root``, which need not exist yet: it is made when something is first written.

    Raises ``StoreError`` for a directory that holds something else, and for a store of a newer format.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._marker, self._lock = root / MARKER, root / "lock"
        # The marker is looked for again last: a first writer may be making the store just now.
        if root.exists() and not (self._marker.exists() or self._is_nearly_empty() or self._marker.exists()):
            raise StoreError(
                root, f"is not a kvtool store (no {MARKER}) and not empty", "name another with --store"
            )
        if self._marker.exists():
            self._check_format()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Shares the lock with other writers. Makes the store if need be, and removes what killed writers left."""

        def first() -> None:
            files.remove_temporaries(self.root)
            self._mark()

        with files.as_store_errors(self.root):
            files.make_directory(self.root)
            with files.locked_shared(self._lock, when_alone=first):
                self._mark()  # in case the first was killed before it did
                yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Held while a manifest is read and replaced, so that of two writers' changes to it none is lost."""
        with files.as_store_errors(self.root), files.locked(self._marker):
            yield

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Waits until no writer holds the lock, and keeps others waiting. Yields False where nobody ever wrote."""
        if not self._lock.exists():
            yield False
            return
        with files.as_store_errors(self.root), files.locked(self._lock):
            yield True

    @contextmanager
    def alone_if_free(self) -> Iterator[bool]:
        """The same without waiting. Yields False while somebody is writing."""
        with files.as_store_errors(self.root), files.locked_if_free(self._lock) as is_alone:
            yield is_alone

    def _mark(self) -> None:
        if not self._marker.exists():
            files.write_atomic(self._marker, [canonical_json({"format": FORMAT}) + b"\n"])

    def _is_nearly_empty(self) -> bool:
        """No more than a writer leaves that was killed before it wrote the marker."""
        return self.root.is_dir() and all(
            path == self._lock or path.name.startswith(files.TEMPORARY) for path in self.root.iterdir()
        )

    def _check_format(self) -> None:
        try:
            data = self._marker.read_bytes()
        except OSError as error:
            raise StoreError(
                self._marker, f"cannot be read ({error.strerror})", "check its permissions"
            ) from error
        check_format(data, str(self._marker))
