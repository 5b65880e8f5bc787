"""Files that come from elsewhere: kept only once they are known to be what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from kvtool.errors import ArtifactError, BrokenFile
from kvtool.system import files


class Refused(ArtifactError):
    """What came is not what it was called. The message names the digest and no file: it may be told to who sent it."""


def receive(path: Path, digest: str, chunks: Iterable[bytes], check: Callable[[Path], object]) -> int:
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
