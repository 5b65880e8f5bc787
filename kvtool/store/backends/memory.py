"""A store's files in a dict: for tests, and as the smallest example of a backend."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from kvtool.digest import digest
from kvtool.store import layout
from kvtool.store.backends.backend import Listed, NotThere
from kvtool.store.backends.files import FileBackend


class MemoryBackend(FileBackend):
    """``files`` by their paths in the store, and ``name``, which tells this store's cache from others'."""

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        self.url, self.files, self.opened = f"memory://{name}", files, time.time()
        super().__init__()

    def _manifests(self) -> Iterator[tuple[str, Listed]]:
        for file, data in self.files.items():
            if file.startswith(f"{layout.MANIFESTS}/"):
                yield file, Listed(digest(data), self.opened)

    def _open(self, file: str) -> tuple[int, Iterator[bytes]]:
        data = self._data(file)
        return len(data), iter([data])

    def _range(self, file: str, start: int, stop: int) -> bytes:
        return self._data(file)[start:stop]

    def _data(self, file: str) -> bytes:
        try:
            return self.files[file]
        except KeyError:
            raise NotThere(f"{self.url}/{file}", "is missing") from None
