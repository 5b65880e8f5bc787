"""A store's files in a dict: for tests, and as the smallest example of a backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from kvtool.digest import digest
from kvtool.store import layout
from kvtool.store.backends.backend import Listed, NotThere
from kvtool.store.backends.counted import OnBytes
from kvtool.store.backends.writable import Conflict, WritableFiles


class MemoryBackend(WritableFiles):
    """``files`` by their paths in the store, and ``name``, which tells this store's cache from others'."""

    def __init__(self, name: str, files: MutableMapping[str, bytes], *, new: bool = False) -> None:
        self.url, self.files, self.opened = f"memory://{name}", files, time.time()
        self._swapping = threading.Lock()
        super().__init__(new=new)

    def _manifests(self) -> Iterator[tuple[str, Listed]]:
        for file, data in self.files.items():
            if file.startswith(f"{layout.MANIFESTS}/"):
                yield file, Listed(digest(data), self.opened)

    def _open(self, file: str) -> tuple[int, Iterator[bytes]]:
        data = self._data(file)
        return len(data), iter([data])

    def _range(self, file: str, start: int, stop: int) -> bytes:
        return self._data(file)[start:stop]

    @property
    def stale(self) -> str:
        return digest(b"nothing that is stored")

    def nbytes_of(self, file: str) -> int | None:
        return len(self.files[file]) if file in self.files else None

    def put(self, file: str, path: Path, on_bytes: OnBytes) -> None:
        self.files[file] = path.read_bytes()
        on_bytes(len(self.files[file]))

    def versioned(self, file: str) -> tuple[bytes, str] | None:
        data = self.files.get(file)
        return None if data is None else (data, digest(data))

    def swap(self, file: str, data: bytes, version: str | None) -> None:
        with self._swapping:
            there = self.files.get(file)
            if (None if there is None else digest(there)) != version:
                raise Conflict(f"{self.url}/{file}", "was changed")
            self.files[file] = data

    def _data(self, file: str) -> bytes:
        try:
            return self.files[file]
        except KeyError:
            raise NotThere(f"{self.url}/{file}", "is missing") from None
