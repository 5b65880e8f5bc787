"""Documents into a store whose files are written one by one: a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtool.artifact.reading import reading
from kvtool.errors import StoreError
from kvtool.store.backends.counted import OnBytes
from kvtool.store.backends.writable import WritableFiles
from kvtool.store.base import Store
from kvtool.store.layout import artifact_file, calibration_file, manifest_file
from kvtool.store.manifest import Document, Variant
from kvtool.store.transfer.change import change_manifest


class ToFiles:
    """``backend``'s files. Artifacts and calibrations have their content's digest as names, so that writers agree on them.

    Manifests are replaced only by who has seen what is replaced.
    """

    at_once = 8

    def __init__(self, backend: WritableFiles) -> None:
        self.backend = backend

    def __str__(self) -> str:
        return self.backend.url

    def document(self, name: str) -> Document | None:
        return self._versioned(name)[0]

    def holds(self, variant: Variant) -> bool:
        return self.backend.nbytes_of(artifact_file(variant.artifact)) == variant.nbytes

    @contextmanager
    def writing(self) -> Iterator[None]:
        self.backend.start()
        yield

    def take(self, source: Store, variant: Variant, on_bytes: OnBytes) -> None:
        artifact = source.open_artifact(variant)
        # Nobody checks it there: a bucket takes any bytes.
        artifact.verify()
        for digest in artifact.meta["calibrations"]:
            _ = source.calibrations[digest]
            self._send(calibration_file(digest), source.locate_calibration(digest), lambda _: None)
        self._send(artifact_file(variant.artifact), source.locate_artifact(variant.artifact), on_bytes)

    def _send(self, file: str, path: Path, on_bytes: OnBytes) -> None:
        with reading(path):
            size = path.stat().st_size
        if self.backend.nbytes_of(file) == size:
            return
        self.backend.put(file, path, on_bytes)
        if (arrived := self.backend.nbytes_of(file)) != size:
            where = f"{self.backend.url}/{file}"
            raise StoreError(where, f"has {arrived} bytes after {size} were sent", "push again")

    def change(self, name: str, update: Callable[[Document | None], Document]) -> None:
        def swap(after: Document, version: str | None) -> None:
            self.backend.swap(manifest_file(name), after.to_bytes(), version)

        change_manifest(f"{self}: {name}", lambda: self._versioned(name), update, swap)

    def _versioned(self, name: str) -> tuple[Document | None, str | None]:
        file = manifest_file(name)
        found = self.backend.versioned(file)
        if found is None:
            return None, None
        data, version = found
        return Document.from_bytes(data, f"{self.backend.url}/{file}"), version
