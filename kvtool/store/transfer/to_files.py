"""Documents into a store whose files are written one by one: a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from kvtool.artifact.reading import reading
from kvtool.artifact.sealed import key_id_of, read_chunks
from kvtool.errors import StoreError
from kvtool.store.backends.counted import OnBytes
from kvtool.store.backends.writable import WritableFiles
from kvtool.store.base import Store
from kvtool.store.layout import artifact_file, calibration_file, manifest_file
from kvtool.store.manifest import Document, Variant
from kvtool.store.sealing import Sealing, key_of, not_encrypted
from kvtool.store.transfer.versioned import VersionedManifests
from kvtool.store.trust.policy import TrustPolicy
from kvtool.system.files import write_atomic


class ToFiles(VersionedManifests):
    """``backend``'s files. Artifacts and calibrations have their content's digest as names, so that writers agree on them.

    Manifests are replaced only by who has seen what is replaced.
    """

    at_once = 8

    def __init__(self, backend: WritableFiles) -> None:
        self.backend = backend

    def __str__(self) -> str:
        return self.backend.url

    def holds(self, variant: Variant) -> bool:
        size = self._sealing.size(variant.nbytes)
        return self.backend.nbytes_of(artifact_file(variant.artifact)) == size

    @property
    def _sealing(self) -> Sealing:
        return Sealing(self.backend.marker.encrypted_with)

    @contextmanager
    def writing(self) -> Iterator[None]:
        self.backend.start()
        yield

    def encrypt_as(self, source: Store) -> None:
        if source.encrypted_with and not self.backend.marker.encrypted_with:
            if not self.backend.is_new:
                raise not_encrypted(self, source)
            key_of(source.encrypted_with)
            self.backend.marker = replace(self.backend.marker, encrypted_with=source.encrypted_with)

    def take(self, source: Store, variant: Variant, on_bytes: OnBytes) -> None:
        artifact = source.open_artifact(variant)
        # Nobody checks it there: a bucket takes any bytes.
        artifact.verify()
        for digest in artifact.meta["calibrations"]:
            _ = source.calibrations[digest]
            self._send(calibration_file(digest), source.locate_calibration(digest), lambda _: None)
        self._send(artifact_file(variant.artifact), source.locate_artifact(variant.artifact), on_bytes)

    def _send(self, file: str, path: Path, on_bytes: OnBytes) -> None:
        with self._as_stored(path) as stored:
            size = stored.stat().st_size
            if self.backend.nbytes_of(file) == size:
                return
            self.backend.put(file, stored, on_bytes)
            if (arrived := self.backend.nbytes_of(file)) != size:
                where = f"{self.backend.url}/{file}"
                raise StoreError(where, f"has {arrived} bytes after {size} were sent", "push again")

    @contextmanager
    def _as_stored(self, path: Path) -> Iterator[Path]:
        """The file as the store keeps it: sealed with its key, or not at all."""
        with reading(path):
            is_as_stored = key_id_of(path) == self.backend.marker.encrypted_with
        if is_as_stored:
            yield path
            return
        with TemporaryDirectory() as folder:
            stored = Path(folder) / path.name
            write_atomic(stored, self._sealing.stored(read_chunks(path), path))
            yield stored

    def change(self, name: str, update: Callable[[Document | None], Document]) -> None:
        """Raises ``NotSigned`` for a document without the signatures that the store requires: nobody could read it there."""
        policy = TrustPolicy((self.backend.marker.signed_by,) if self.backend.marker.signed_by else ())
        super().change(name, lambda old: policy.checked(update(old)))

    def manifest(self, name: str) -> tuple[bytes, str] | None:
        return self.backend.versioned(manifest_file(name))

    def swap(self, name: str, manifest: bytes, version: str | None) -> None:
        self.backend.swap(manifest_file(name), manifest, version)
