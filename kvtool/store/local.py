"""A store in a directory: artifacts addressed by content, and manifests that name documents.

Write order: artifacts first, the document's manifest last, each by temporary file, fsync, rename, fsync of the
directory. Killed at any byte, a store holds everything committed before and nothing half written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool import limits
from kvtool.artifact.read import Artifact
from kvtool.artifact.write import Content, serialize
from kvtool.digest import is_digest
from kvtool.errors import ArtifactError, StoreError
from kvtool.store.backends.backend import NotThere
from kvtool.store.base import Store
from kvtool.store.calibrations import Calibrations
from kvtool.store.directory import StoreDirectory
from kvtool.store.layout import (
    ARTIFACTS,
    CALIBRATIONS,
    MANIFESTS,
    artifact_file,
    document_name,
    manifest_file,
)
from kvtool.store.manifest import Document, Variant
from kvtool.store.verified_write import receive
from kvtool.system import files

if TYPE_CHECKING:
    from kvtool.codecs import Calibration


class LocalStore(Store, schemes=[""]):
    """The store in the directory ``root``; an empty one is made there when something is first written.

    Raises ``StoreError`` for a directory that holds something else, and for a store of a newer format.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._directory = StoreDirectory(self.root)
        self._calibrations = Calibrations(self.root / CALIBRATIONS)

    def __str__(self) -> str:
        return str(self.root)

    # Reading

    def __getitem__(self, name: str) -> Document:
        path = self._manifest_path(name)
        try:
            with path.open("rb") as file:
                data = file.read(limits.MANIFEST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise self._missing(name) from None
        except OSError as error:
            raise StoreError(path, f"cannot be read ({error.strerror})") from error
        if len(data) > limits.MANIFEST_BYTES:
            raise StoreError(path, f"is larger than a manifest can be ({limits.MANIFEST_BYTES} bytes)")
        document = Document.from_bytes(data, str(path))
        if document.name != name:
            raise StoreError(path, f"is the manifest of {document.name!r}, not of {name!r}", "move it back")
        return document

    def __iter__(self) -> Iterator[str]:
        manifests = (path for path in (self.root / MANIFESTS).rglob("*.json") if path.is_file())
        yield from sorted(document_name(path.relative_to(self.root).as_posix()) for path in manifests)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self._manifest_path(name).is_file()
        except (StoreError, OSError):
            return False

    @property
    def calibrations(self) -> Calibrations:
        return self._calibrations

    def committed(self, name: str) -> float:
        return self._manifest_path(name).stat().st_mtime

    def holds(self, variant: Variant) -> bool:
        return self.path_of(variant).is_file()

    def open_artifact(self, variant: Variant) -> Artifact:
        return Artifact.open(self.path_of(variant), expected=variant.artifact, calibrations=self.calibrations)

    def locate_artifact(self, digest: str) -> Path:
        return _existing(digest, self.artifact_path)

    def locate_calibration(self, digest: str) -> Path:
        return _existing(digest, self.calibrations.path_of)

    def path_of(self, variant: Variant) -> Path:
        return self.artifact_path(variant.artifact)

    def artifact_path(self, digest: str) -> Path:
        """Where the artifact of that digest is stored, if it is there."""
        return self.root / artifact_file(digest)

    def known(self) -> dict[str, Variant]:
        """Identity → artifact, for all raw ones that manifests name, and for all that an interrupted run has left.

        A broken manifest stops nobody here: what it named is found by its own header.
        """
        documents = self.readable()
        artifacts, referenced = self._known(documents), _artifacts_of(documents)
        for path in self._artifact_files():
            if path.stem not in referenced:
                try:
                    stray = Artifact.open(path, expected=path.stem, calibrations=self.calibrations)
                except ArtifactError:
                    continue
                artifacts.setdefault(stray.meta["identity"], Variant(path.stem, stray.nbytes))
        return artifacts

    # Writing

    def writing(self) -> AbstractContextManager[None]:
        """Makes the store if need be, and removes what killed writers left."""
        return self._directory.writing()

    def changing(self) -> AbstractContextManager[None]:
        """Held while a manifest is read and replaced, so that of two writers' changes to it none is lost."""
        return self._directory.changing()

    def put(self, content: Content) -> Variant:
        """Stores an artifact; the same content is stored once."""
        digest, chunks = serialize(content)
        variant = Variant(digest, sum(len(chunk) for chunk in chunks))
        if not self.holds(variant):
            files.write_atomic(self.path_of(variant), chunks)
        return variant

    def receive(
        self,
        digest: str,
        chunks: Iterable[bytes],
        calibrations: Mapping[str, Calibration] | None = None,
    ) -> int:
        """Stores an artifact that was made elsewhere, once every byte of it is checked; returns its size in bytes.

        One that is there already is written over by the same bytes, and so is mended if it is broken. Raises ``Refused``
        unless it is the artifact of that digest, and its calibrations are in ``calibrations`` (the store's own).
        """
        known = self.calibrations if calibrations is None else calibrations
        return receive(
            self.artifact_path(digest),
            digest,
            chunks,
            lambda path: Artifact.open(path, expected=digest, calibrations=known).verify(),
        )

    def put_calibration(self, calibration: Calibration) -> None:
        """Stores a calibration; it must be there before an artifact that names it."""
        self.calibrations.put(calibration)

    def commit(self, document: Document) -> None:
        """Makes ``document`` what its name stands for; its artifacts must have been put before.

        Who builds on what was there reads and commits within ``changing``.
        """
        files.write_atomic(self._manifest_path(document.name), [document.to_bytes()])

    # Removing

    def remove(self, name: str) -> None:
        """Forgets a document. Its artifacts stay until ``collect``, since others may share them."""
        self[name]
        path = self._manifest_path(name)
        with files.as_store_errors(path):
            path.unlink()
            files.fsync_directory(path.parent)

    def discard(self, variant: Variant) -> None:
        with files.as_store_errors(self.root):
            self.path_of(variant).unlink(missing_ok=True)

    def collect(self, *, dry_run: bool = False) -> list[Path]:
        """Removes the artifacts that no document refers to, and returns their paths. Waits for writers to end.

        Calibrations stay: each was made on purpose, and serves documents to come.
        """
        with self._directory.alone() as is_store:
            if not is_store:
                return []
            used = _artifacts_of(self.values())
            unused = [path for path in self._artifact_files() if path.stem not in used]
            if not dry_run:
                files.remove_temporaries(self.root)
                for path in unused:
                    path.unlink()
        return unused

    def purge(self, name: str) -> bool:
        """Forgets a document, and removes the artifacts that no other refers to; nothing if somebody is writing.

        Returns whether it is gone now.
        """
        if name not in self:
            return True
        with self._directory.alone_if_free() as is_alone:
            if is_alone:
                artifacts = self[name].artifacts
                # The manifest first: an artifact too many is collected one day, one that is missing is an error.
                self.remove(name)
                used = _artifacts_of(self.values())
                for variant in artifacts:
                    if variant.artifact not in used:
                        self.discard(variant)
        return is_alone

    def _artifact_files(self) -> list[Path]:
        return sorted((self.root / ARTIFACTS).glob("??/*.safetensors"))

    def _manifest_path(self, name: str) -> Path:
        return self.root / manifest_file(name)


def writable(store: Store) -> LocalStore:
    """``store``, to be written to. Raises ``StoreError`` for one that can only be read."""
    if not isinstance(store, LocalStore):
        raise StoreError(
            str(store), "is read only", "kvtool pull copies its documents into a store of your own"
        )
    return store


def _artifacts_of(documents: Iterable[Document]) -> set[str]:
    """Digests of all artifacts that the documents refer to."""
    return {variant.artifact for document in documents for variant in document.artifacts}


def _existing(digest: str, path_of: Callable[[str], Path]) -> Path:
    # Only what is a digest may become a path.
    if not (is_digest(digest) and path_of(digest).is_file()):
        raise NotThere(digest[:80], "is not in the store")
    return path_of(digest)
