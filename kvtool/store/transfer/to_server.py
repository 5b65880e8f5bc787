"""Documents into the store of a server, kvtool serve-cache, which checks every byte."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from kvtool.store.backends.counted import OnBytes
from kvtool.store.backends.http import HttpBackend
from kvtool.store.base import Store
from kvtool.store.manifest import Document, Variant
from kvtool.store.transfer.change import change_manifest


class ToServer:
    """The store that the server has for the token in the environment."""

    at_once = 2

    def __init__(self, backend: HttpBackend) -> None:
        self.backend = backend

    def __str__(self) -> str:
        return self.backend.url

    def document(self, name: str) -> Document | None:
        return self._versioned(name)[0]

    def holds(self, variant: Variant) -> bool:
        return self.backend.nbytes_of("artifact", variant.artifact) == variant.nbytes

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def take(self, source: Store, variant: Variant, on_bytes: OnBytes) -> None:
        for digest in source.open_artifact(variant).meta["calibrations"]:
            _ = source.calibrations[digest]
            if self.backend.nbytes_of("calibration", digest) is None:
                self.backend.put("calibration", digest, source.locate_calibration(digest), lambda _: None)
        self.backend.put("artifact", variant.artifact, source.locate_artifact(variant.artifact), on_bytes)

    def change(self, name: str, update: Callable[[Document | None], Document]) -> None:
        def swap(after: Document, version: str | None) -> None:
            self.backend.swap(name, after.to_bytes(), version)

        change_manifest(f"{self}: {name}", lambda: self._versioned(name), update, swap)

    def _versioned(self, name: str) -> tuple[Document | None, str | None]:
        found = self.backend.versioned(name)
        if found is None:
            return None, None
        return Document.from_bytes(found[0], f"{self}: {name}"), found[1]
