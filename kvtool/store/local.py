"""A store in a directory: artifacts addressed by content, and manifests that name documents.

Write order: artifacts first, the document's manifest last, each by temporary file, fsync, rename, fsync of the
directory. Killed at any byte, a store holds everything committed before and nothing half written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.artifact.read import Artifact
from kvtool.artifact.write import Content, serialize
from kvtool.digest import is_digest
from kvtool.errors import ArtifactError
from kvtool.store.backends.backend import NotThere
from kvtool.store.base import Store
from kvtool.store.calibrations import Calibrations
from kvtool.store.catalog.local import LocalCatalog, artifacts_of, read_only
from kvtool.store.layout import CALIBRATIONS
from kvtool.store.manifest import Variant
from kvtool.store.trust.keys import has_signing_key
from kvtool.store.verified_write import receive
from kvtool.system import files

if TYPE_CHECKING:
    from kvtool.codecs import Calibration


class LocalStore(LocalCatalog, Store, schemes=[""]):
    """The store in the directory ``root``; an empty one is made there when something is first written.

    Raises ``StoreError`` for a directory that holds something else, and for a store of a newer format.
    """

    def __init__(self, root: str | Path, *, is_cache: bool = False, is_private: bool = False) -> None:
        super().__init__(root, is_cache=is_cache, is_private=is_private)
        self._calibrations = Calibrations(self.root / CALIBRATIONS, self.sealing)

    @property
    def calibrations(self) -> Calibrations:
        return self._calibrations

    def open_artifact(self, variant: Variant) -> Artifact:
        return Artifact.open(self.path_of(variant), expected=variant.artifact, calibrations=self.calibrations)

    def locate_artifact(self, digest: str) -> Path:
        return _existing(digest, self.artifact_path)

    def locate_calibration(self, digest: str) -> Path:
        return _existing(digest, self.calibrations.path_of)

    def known(self) -> dict[str, Variant]:
        """Identity → artifact, for all raw ones that manifests name, and for all that an interrupted run has left.

        A broken manifest stops nobody here: what it named is found by its own header. For who signs, and where signatures are
        required, strays do not count: anybody may have left them, and whoever builds on them would sign them.
        """
        documents = self.readable()
        if self.trust.rules or has_signing_key():
            return self._known(documents)
        artifacts, referenced = self._known(documents), artifacts_of(documents)
        for path in self.artifact_files():
            if path.stem not in referenced:
                try:
                    stray = Artifact.open(path, expected=path.stem, calibrations=self.calibrations)
                except ArtifactError:
                    continue
                artifacts.setdefault(stray.meta["identity"], Variant(path.stem, stray.nbytes))
        return artifacts

    # Writing

    def put(self, content: Content) -> Variant:
        """Stores an artifact; the same content is stored once."""
        digest, chunks = serialize(content)
        variant = Variant(digest, sum(len(chunk) for chunk in chunks))
        if not self.holds(variant):
            files.write_atomic(self.path_of(variant), self.sealing().stored(chunks, digest))
        return variant

    def receive(
        self, digest: str, chunks: Iterable[bytes], calibrations: Mapping[str, Calibration] | None = None
    ) -> int:
        """Stores a remote artifact, once every byte of it is checked; returns its size in bytes.

        An existing file is written again, which mends a broken one. Raises ``Refused``
        unless it is the artifact of that digest, and its calibrations are in ``calibrations`` (the store's own).
        """
        known = self.calibrations if calibrations is None else calibrations

        def check(path: Path) -> None:
            Artifact.open(path, expected=digest, calibrations=known).verify()

        return receive(self.artifact_path(digest), digest, self.sealing().stored(chunks, digest), check)

    def put_calibration(self, calibration: Calibration) -> None:
        """Stores a calibration; it must be there before an artifact that names it."""
        self.calibrations.put(calibration)


def writable(store: Store) -> LocalStore:
    """``store``, to be written to. Raises ``StoreError`` for one that can only be read."""
    if not isinstance(store, LocalStore):
        raise read_only(store)
    return store


def _existing(digest: str, path_of: Callable[[str], Path]) -> Path:
    # Only what is a digest may become a path.
    if not (is_digest(digest) and path_of(digest).is_file()):
        raise NotThere(digest[:80], "is not in the store")
    return path_of(digest)
