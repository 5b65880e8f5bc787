"""Documents into the store of a server, kvtool serve-cache, which checks every byte."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from kvtool.store.backends.counted import OnBytes
from kvtool.store.backends.http import HttpBackend
from kvtool.store.base import Store
from kvtool.store.manifest import Variant
from kvtool.store.sealing import not_encrypted
from kvtool.store.transfer.versioned import VersionedManifests


class ToServer(VersionedManifests):
    """The store that the server has for the token in the environment."""

    at_once = 2

    def __init__(self, backend: HttpBackend) -> None:
        self.backend = backend

    def __str__(self) -> str:
        return self.backend.url

    def holds(self, variant: Variant) -> bool:
        return self.backend.nbytes_of("artifact", variant.artifact) == variant.nbytes

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def encrypt_as(self, source: Store) -> None:
        if source.encrypted_with:
            raise not_encrypted(self, source)

    def take(self, source: Store, variant: Variant, on_bytes: OnBytes) -> None:
        for digest in source.open_artifact(variant).meta["calibrations"]:
            _ = source.calibrations[digest]
            if self.backend.nbytes_of("calibration", digest) is None:
                self.backend.put("calibration", digest, source.locate_calibration(digest), lambda _: None)
        self.backend.put("artifact", variant.artifact, source.locate_artifact(variant.artifact), on_bytes)

    def manifest(self, name: str) -> tuple[bytes, str] | None:
        return self.backend.versioned(name)

    def swap(self, name: str, manifest: bytes, version: str | None) -> None:
        self.backend.swap(name, manifest, version)
