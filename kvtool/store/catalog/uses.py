"""When documents were last used, and which are in use now.

As ``sources``, these are the store's own notes: they are no part of a document, and are not copied with it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kvtool.store.layout import USES, note_file
from kvtool.system import files


class Uses:
    """One empty file for each document of the store in ``root`` that was used: its time says when, its lock that it is in use.

    The kernel lets go of the lock when its holder dies. A lock is one holder's, within a process too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Notes a use of the documents, none of which ``unused`` yields as free within the context.

        In a store that cannot be written to, nothing is noted, and nobody makes room.
        """
        with ExitStack() as stack:
            for path in [self.root / note_file(USES, name) for name in names]:
                with suppress(OSError):
                    if self.root.is_dir():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        file = stack.enter_context(path.open("a"))
                        fcntl.flock(file, fcntl.LOCK_SH)
                        path.touch()
            yield

    @contextmanager
    def unused(self, name: str) -> Iterator[bool]:
        """Yields whether nobody uses the document; if so, nobody begins to within the context."""
        path = self.root / note_file(USES, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        was_used = path.exists()
        with files.locked_if_free(path) as is_free:
            if not was_used:
                # To look is no use.
                os.utime(path, (0, 0))
            yield is_free

    def is_used(self, name: str) -> bool:
        """Whether somebody uses the document now."""
        if not (self.root / note_file(USES, name)).exists():
            return False
        with self.unused(name) as is_free:
            return not is_free

    def last(self, name: str) -> float | None:
        """When the document was last used, in seconds since 1970; None if it never was."""
        try:
            return (self.root / note_file(USES, name)).stat().st_mtime or None
        except OSError:
            return None

    def discard(self, name: str) -> None:
        (self.root / note_file(USES, name)).unlink(missing_ok=True)
