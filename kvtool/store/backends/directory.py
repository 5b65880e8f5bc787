"""A store's directory, read as a remote store: on a network mount, say, where a copy on this machine's disk is faster.

A plain path opens the same directory as a local store, which reads in place and can be written to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from kvtool import limits
from kvtool.errors import StoreError, UsageError
from kvtool.store import layout
from kvtool.store.backends.backend import Listed, NotThere, Unreachable
from kvtool.store.backends.files import FileBackend


class DirectoryBackend(FileBackend):
    """The store at ``file:///DIRECTORY``. Raises ``UsageError`` for another URL."""

    def __init__(self, url: str) -> None:
        path = unquote(url.removeprefix("file://"))
        if not url.startswith("file:///") or "\0" in path:
            raise UsageError(f"store {url}", "expected file:///DIRECTORY, an absolute path")
        self.url, self.root = url.rstrip("/"), Path(path)
        super().__init__()

    def _manifests(self) -> Iterator[tuple[str, Listed]]:
        with self._as_store_errors(layout.MANIFESTS):
            if not self._is_mounted():
                raise self._unreachable(layout.MANIFESTS, "the directory is missing or empty")
            for path in (self.root / layout.MANIFESTS).rglob("*.json"):
                if path.is_file():
                    # A commit puts a new file in place, so that its inode tells it from one of the same size and time.
                    status = path.stat()
                    version = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
                    yield path.relative_to(self.root).as_posix(), Listed(version, status.st_mtime)

    def _open(self, file: str) -> tuple[int, Iterator[bytes]]:
        with self._as_store_errors(file):
            return (self.root / file).stat().st_size, self._chunks(file)

    def _chunks(self, file: str) -> Iterator[bytes]:
        with self._as_store_errors(file), (self.root / file).open("rb") as opened:
            while chunk := opened.read(limits.MIB):
                yield chunk

    def _range(self, file: str, start: int, stop: int) -> bytes:
        with self._as_store_errors(file), (self.root / file).open("rb") as opened:
            opened.seek(start)
            return opened.read(stop - start)

    @contextmanager
    def _as_store_errors(self, file: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            # Where a mount is gone, nothing that was read before may be taken for removed.
            if self._is_mounted():
                raise NotThere(f"{self.url}/{file}", "is missing") from None
            raise self._unreachable(file, "the directory is missing or empty") from error
        except PermissionError as error:
            reason = f"may not be read ({error.strerror})"
            raise StoreError(f"{self.url}/{file}", reason, "check its permissions") from error
        except OSError as error:
            raise self._unreachable(file, str(error.strerror)) from error

    def _is_mounted(self) -> bool:
        try:
            return any(self.root.iterdir())
        except OSError:
            return False

    def _unreachable(self, file: str, why: str) -> Unreachable:
        return Unreachable(f"{self.url}/{file}", f"cannot be read ({why})", "is it mounted?")
