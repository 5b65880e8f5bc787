"""Files from remote places: kept only once their content is known to match their name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from kvtool.errors import ArtifactError, BrokenFile
from kvtool.system import files


class Refused(ArtifactError):
    """Content that does not match its digest. The message names no file, since the sender may see it."""


def receive(
    path: Path, digest: str, chunks: Iterable[bytes | memoryview], check: Callable[[Path], object]
) -> int:
    """Writes ``chunks`` to ``path`` if ``check`` raises no ``ArtifactError`` for them; returns their size in bytes.

    Raises ``Refused`` if it does, and then leaves what was at ``path`` before.
    """

    def checked(temporary: Path) -> None:
        try:
            check(temporary)
        except ArtifactError as error:
            if error.subject != temporary:
                raise
            # What is advised about files that have broken in the store does not help here.
            remedy = "nothing was kept, send it again" if isinstance(error, BrokenFile) else error.remedy
            raise Refused(digest, error.reason, remedy) from error

    return files.write_atomic(path, chunks, checked)
