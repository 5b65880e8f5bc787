"""Files whose bytes are counted as they are read, so that a long upload shows how far it is and can be ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, TypeAlias

OnBytes: TypeAlias = Callable[[int], None]


class Counted:
    """``file`` from its beginning. ``on_bytes`` gets the size of each piece that is read; what it raises ends the reading."""

    def __init__(self, file: IO[bytes], on_bytes: OnBytes) -> None:
        self.file, self.on_bytes = file, on_bytes

    def read(self, size: int = -1) -> bytes:
        piece = self.file.read(size)
        self.on_bytes(len(piece))
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()
