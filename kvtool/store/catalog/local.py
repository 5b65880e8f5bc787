"""The catalog of a store in a directory: its manifests, the names of its artifacts, and the locks of those who write.

Readers need no lock. Writers share one, which tells the files of killed writers from those of living ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvtool import limits
from kvtool.artifact.sealed import sealed_size
from kvtool.errors import StoreError
from kvtool.store.catalog.catalog import Catalog
from kvtool.store.catalog.pins import Pins
from kvtool.store.catalog.sources import Sources
from kvtool.store.catalog.uses import Uses
from kvtool.store.layout import (
    ARTIFACTS,
    CALIBRATIONS,
    MANIFESTS,
    MARKER,
    Marker,
    artifact_file,
    document_name,
    manifest_file,
    read_marker,
)
from kvtool.store.manifest import Document, Variant
from kvtool.store.sealing import Sealing
from kvtool.store.trust.keys import signing_key
from kvtool.store.trust.policy import TrustPolicy
from kvtool.store.trust.signatures import sign
from kvtool.system import files


class LocalCatalog(Catalog):
    """The documents in the directory ``root``, which need not exist yet: it is made when something is first written.

    ``is_cache`` if it keeps what a remote store has, encrypted or not; ``is_private`` if this process alone makes and uses it, so
    that no signature is required. Raises ``StoreError`` for a directory that holds something
    else, and for a store of a newer format.
    """

    def __init__(self, root: str | Path, *, is_cache: bool = False, is_private: bool = False) -> None:
        self.root, self.is_cache, self.is_private = Path(root), is_cache, is_private
        self.sources, self.uses, self.pins = Sources(self.root), Uses(self.root), Pins(self.root)
        self._marker, self._lock = self.root / MARKER, self.root / "lock"
        self.marker = Marker()
        self._marker_state: tuple[int, ...] | None = None
        # The marker is looked for again last: a first writer may be making the store just now.
        if self.root.exists() and not (
            self._marker.exists() or self._is_nearly_empty() or self._marker.exists()
        ):
            reason = f"is not a kvtool store (no {MARKER}) and not empty"
            raise StoreError(self.root, reason, "name another with --store")
        self._follow_marker()

    def __str__(self) -> str:
        return str(self.root)

    def _follow_marker(self) -> None:
        """Reads what the store says of itself, if that has changed: another process may have encrypted it, say."""
        try:
            state = self._state_of_marker()
            if state == self._marker_state:
                return
            if state:
                self.marker = read_marker(self._marker.read_bytes(), str(self._marker))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            raise StoreError(self._marker, reason, "check its permissions") from error
        self.trust = TrustPolicy() if self.is_private else TrustPolicy.of(self.marker)
        # Last: whoever fails before asks again, and is not left with what was required before.
        self._marker_state = state

    def _state_of_marker(self) -> tuple[int, ...]:
        """What differs once the marker is another file, which is put in its place; () if there is none."""
        try:
            status = self._marker.stat()
        except FileNotFoundError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns

    # Reading

    def __getitem__(self, name: str) -> Document:
        self._follow_marker()
        return self.trust.checked(self.stored(name))

    def stored(self, name: str) -> Document:
        """The document's manifest, whoever has signed it: for who keeps the store, not for who uses documents."""
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

    def state(self, document: Document, variants: Collection[str]) -> str | None:
        """``Document.state``; None where an artifact of these variants is missing or cut off."""
        artifacts = [v for s in document.segments for label, v in s.variants.items() if label in variants]
        if document.prefix_artifact:
            artifacts.append(document.prefix_artifact)
        return document.state(variants) if all(map(self.holds_whole, artifacts)) else None

    def committed(self, name: str) -> float:
        return self._manifest_path(name).stat().st_mtime

    def using(self, *names: str) -> AbstractContextManager[None]:
        # Not of names that nobody has stored: those would leave notes.
        return self.uses.using(*(name for name in names if name in self))

    def holds(self, variant: Variant) -> bool:
        """Whether the artifact's file is there."""
        return self.path_of(variant).is_file()

    def holds_whole(self, variant: Variant) -> bool:
        """Whether the artifact's file is there, with as many bytes as it should have."""
        with suppress(OSError):
            return self.path_of(variant).stat().st_size in (variant.nbytes, sealed_size(variant.nbytes))
        return False

    @property
    def encrypted_with(self) -> str | None:
        return self.marker.encrypted_with

    def sealing(self) -> Sealing:
        """How files are written here now."""
        return Sealing(self.marker.encrypted_with, self.is_cache)

    def path_of(self, variant: Variant) -> Path:
        return self.artifact_path(variant.artifact)

    def artifact_path(self, digest: str) -> Path:
        """The artifact's file, whether or not it exists."""
        return self.root / artifact_file(digest)

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Shares the lock with other writers. Makes the store if need be, and removes what killed writers left."""

        def first() -> None:
            files.remove_temporaries(self.root)
            self._mark()

        with files.as_store_errors(self.root):
            files.make_directory(self.root)
            with files.locked_shared(self._lock, when_alone=first):
                self._mark()  # in case the first was killed before it did
                # Since it was opened, the store may have been encrypted.
                self._follow_marker()
                yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Held while a manifest is read and replaced, so that of two writers' changes to it none is lost."""
        with files.as_store_errors(self.root), files.locked(self._marker):
            yield

    def commit(self, document: Document) -> None:
        """Makes ``document`` what its name stands for; its artifacts must have been put before.

        Who builds on what was there reads and commits within ``changing``. Where signatures are required, it is signed with the
        key of the environment, of which ``KvtoolError`` says what is wrong.
        """
        self.accept(sign(document, signing_key()) if self.trust.rules else document)

    def check_key(self) -> None:
        """Raises ``KvtoolError`` if documents must be signed here and the environment has no key. Asked before long work."""
        if self.trust.rules:
            signing_key()

    def accept(self, document: Document) -> None:
        """As ``commit``, for a document that another has made, whose signatures are all that it has.

        Raises ``NotSigned`` where they are not those that are required.
        """
        self.write_manifest(self.trust.checked(document))

    def write_manifest(self, document: Document) -> None:
        """Writes it whoever has signed it: for who keeps the store."""
        files.write_atomic(self._manifest_path(document.name), [document.to_bytes()])

    def require(self, signed_by: Iterable[str]) -> None:
        """Requires from now on that each document is signed by one of these public keys, in hexadecimal; of none: of nobody."""
        self._say(signed_by=tuple(sorted(set(signed_by))))

    def encrypt_with(self, key: str) -> None:
        """Encrypts with the key of this id what is written from now on."""
        self._say(encrypted_with=key)

    def _say(self, **changes: Any) -> None:
        with self.writing():
            pass  # The store is made.
        # Alone, since the marker is what writers lock while they change a manifest.
        with self.alone():
            self._follow_marker()
            files.write_atomic(self._marker, [replace(self.marker, **changes).to_bytes()])
            self._follow_marker()

    # Removing

    def remove(self, name: str) -> None:
        """Forgets a document. Its artifacts stay until ``collect``."""
        self.stored(name)
        path = self._manifest_path(name)
        with files.as_store_errors(path):
            path.unlink()
            files.fsync_directory(path.parent)
            for notes in (self.sources, self.uses, self.pins):
                notes.discard(name)

    def discard(self, variant: Variant) -> None:
        """Removes an artifact's file, so that it will be made again."""
        with files.as_store_errors(self.root):
            self.path_of(variant).unlink(missing_ok=True)

    @contextmanager
    def alone(self, *, wait: bool = True) -> Iterator[bool]:
        """Held while artifacts are removed, since a writer may be relying on any. Waits for writers to end.

        Without ``wait`` it yields whether there are none.
        """
        with files.as_store_errors(self.root):
            if wait:
                with files.locked(self._lock):
                    yield True
            else:
                with files.locked_if_free(self._lock) as is_alone:
                    yield is_alone

    def collect(self, *, dry_run: bool = False) -> list[Path]:
        """Removes the artifacts that no document refers to, and returns their paths. Waits for writers to end.

        Calibrations stay: each was made on purpose, and serves documents to come. A ``dry_run`` waits for nobody, and counts
        what ``writers`` have not committed yet.
        """
        if dry_run:
            return self.unused()
        if not self._lock.exists():
            return []
        with self.alone():
            unused = self.unused()
            files.remove_temporaries(self.root)
            for path in unused:
                path.unlink()
        return unused

    def writers(self) -> list[str]:
        """The processes that are writing now, where the system tells."""
        return files.holders(self._lock)

    def unused(self) -> list[Path]:
        """The artifacts that no document refers to. Raises ``StoreError`` if a manifest cannot be read."""
        # Listed before the manifests are read: what is committed meanwhile is in use.
        artifacts = self.artifact_files()
        used = self.used()
        return [path for path in artifacts if path.stem not in used]

    def used(self) -> set[str]:
        """Digests of the artifacts that documents refer to. Raises ``StoreError`` if a manifest cannot be read."""
        return artifacts_of(map(self.stored, self))

    def free(self, names: Iterable[str]) -> list[Path]:
        """Forgets documents, and removes the artifacts that they named and no other does. Waits for writers to end.

        What nobody names stays: an interrupted run goes on from it. Returns the paths of the artifacts removed.
        """
        with self.alone():
            return self.free_alone(names)

    def purge(self, name: str) -> bool:
        """``free`` for one document; nothing if somebody is writing. Returns whether it is gone now."""
        if name not in self:
            return True
        with self.alone(wait=False) as is_alone:
            if is_alone:
                self.free_alone([name])
        return is_alone

    def free_alone(self, names: Iterable[str]) -> list[Path]:
        """``free``, within ``alone``."""
        documents = {name: self.stored(name) for name in names}
        # The manifests first: an artifact too many is collected one day, one that is missing is an error.
        for name in documents:
            self.remove(name)
        freed = artifacts_of(documents.values()) - self.used()
        paths = sorted(path for path in map(self.artifact_path, freed) if path.is_file())
        for path in paths:
            path.unlink()
        return paths

    def artifact_files(self) -> list[Path]:
        """All artifacts' files, in order."""
        return sorted((self.root / ARTIFACTS).glob("??/*.safetensors"))

    def calibration_files(self) -> list[Path]:
        """All calibrations' files, in order."""
        return sorted((self.root / CALIBRATIONS).glob("*.safetensors"))

    def _manifest_path(self, name: str) -> Path:
        return self.root / manifest_file(name)

    @property
    def is_made(self) -> bool:
        """Whether the store is there, and not only a place for it."""
        return self._marker.exists()

    def _mark(self) -> None:
        if not self._marker.exists():
            files.write_atomic(self._marker, [self.marker.to_bytes()])

    def _is_nearly_empty(self) -> bool:
        """No more than a writer leaves that was killed before it wrote the marker."""
        return self.root.is_dir() and all(
            path == self._lock or path.name.startswith(files.TEMPORARY) for path in self.root.iterdir()
        )


def read_only(catalog: Catalog) -> StoreError:
    """The error for a store that cannot be written to."""
    remedy = "kvtool pull copies its documents into a store of your own"
    return StoreError(str(catalog), "is read only", remedy)


def artifacts_of(documents: Iterable[Document]) -> set[str]:
    """Digests of all artifacts that the documents refer to."""
    return {variant.artifact for document in documents for variant in document.artifacts}
