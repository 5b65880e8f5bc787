"""A store: a directory of artifacts, addressed by content, and manifests that name documents.

Write order: artifacts first, the document's manifest last, each by temporary file, fsync, rename, fsync of the
directory. Killed at any byte, a store holds everything committed before and nothing half written. Readers need
no lock. Writers share one, so that what a killed writer left is told apart from what a living one is writing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool import limits
from kvtool.artifact.read import Artifact
from kvtool.artifact.write import Content, serialize
from kvtool.digest import canonical_json
from kvtool.errors import ArtifactError, StoreError
from kvtool.store.calibrations import Calibrations
from kvtool.store.layout import (
    ARTIFACTS,
    CALIBRATIONS,
    FORMAT,
    MANIFESTS,
    MARKER,
    artifact_file,
    check_format,
    document_name,
    manifest_file,
)
from kvtool.store.manifest import EXPECTED, RAW, Document, Variant
from kvtool.store.verified_write import receive
from kvtool.system import files as fs

if TYPE_CHECKING:
    from kvtool.codecs import KV, Calibration
    from kvtool.engines.cache import DocumentCache
    from kvtool.model.model import Model


class Store(Mapping[str, Document]):
    """Documents by name. ``Store(path)`` opens a store, or makes an empty one when something is first written.
    ``Store("http://host:port")`` reads a server's, ``Store("s3://bucket/prefix")`` a bucket's, as ``kvtool.store.remote`` says.

    Raises ``StoreError`` for a directory that holds something else, and for a store of a newer format.
    """

    is_writable = True

    # Without a root it is called by copy and pickle.
    def __new__(cls, root: str | Path = "") -> Store:
        # A Path writes s3://bucket as s3:/bucket.
        if cls is Store and re.match(r"\w{2,}:/", str(root)):
            from kvtool.store.remote import RemoteStore

            return super().__new__(RemoteStore)
        return super().__new__(cls)

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._artifacts, self._manifests = self.root / ARTIFACTS, self.root / MANIFESTS
        self.calibrations = Calibrations(self.root / CALIBRATIONS)
        marker = self.root / MARKER
        # The marker is looked for again last: a first writer may be making the store just now.
        if self.root.exists() and not (marker.exists() or self._is_nearly_empty() or marker.exists()):
            raise StoreError(
                self.root, f"is not a kvtool store (no {MARKER}) and not empty", "name another with --store"
            )
        if marker.exists():
            self._check_format(marker)

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

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
        files = (path for path in self._manifests.rglob("*.json") if path.is_file())
        yield from sorted(document_name(path.relative_to(self.root).as_posix()) for path in files)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self._manifest_path(name).is_file()
        except (StoreError, OSError):
            return False

    def size(self, name: str, variant: str = RAW) -> int:
        """Bytes of the variant's files: every segment's artifact, whole."""
        document = self[name]
        return sum(self._variant(document, i, variant).nbytes for i in range(len(document.segments)))

    def open(self, name: str, variant: str = RAW, segment: int = 0) -> Artifact:
        """The artifact of one segment, its header checked."""
        return self.open_artifact(self._variant(self[name], segment, variant))

    def open_artifact(self, variant: Variant) -> Artifact:
        return Artifact.open(self.path_of(variant), expected=variant.artifact, calibrations=self.calibrations)

    def read(self, name: str, variant: str = RAW, segment: int = 0) -> KV:
        """One segment's KV, every byte checked, without its prefix; needs no model."""
        return self.open(name, variant, segment).kv()

    def load(self, name: str, model: Model, variant: str = RAW, segment: int = 0) -> DocumentCache:
        """A transformers cache of one segment behind its prefix, ready for ``model``.

        Raises ``MismatchError``, naming the field, if the artifact belongs to another model.
        """
        from kvtool.artifact.load import load_cache

        return load_cache(self.parts(name, variant, segment), model)

    def parts(self, name: str, variant: str = RAW, segment: int = 0) -> list[Artifact]:
        """What one segment's cache is loaded from: its prefix, if it has one, and itself."""
        document = self[name]
        parts = [document.prefix_artifact] if document.prefix_artifact else []
        return [self.open_artifact(part) for part in (*parts, self._variant(document, segment, variant))]

    def bring(self, digest: str) -> None:
        """Fetches the artifact of that digest where it lies elsewhere, if there is one."""

    def bring_calibration(self, digest: str) -> None:
        """The same of a calibration."""

    def fetch_seconds(self, variant: Variant) -> float:
        """How long it takes until it is here, where it lies elsewhere."""
        return 0.0

    @property
    def heads(self) -> Store:
        """The same for who reads no keys and values: they are not fetched where they lie elsewhere."""
        return self

    def path_of(self, variant: Variant) -> Path:
        return self.artifact_path(variant.artifact)

    def artifact_path(self, digest: str) -> Path:
        """Where the artifact of that digest lies, if it is there."""
        return self.root / artifact_file(digest)

    def committed(self, name: str) -> float:
        """When the document was last committed, in seconds since 1970."""
        return self._manifest_path(name).stat().st_mtime

    def holds(self, variant: Variant) -> bool:
        return self.path_of(variant).is_file()

    def known(self) -> dict[str, Variant]:
        """Identity → artifact, for all raw ones that manifests name, and for all that an interrupted run has left.

        A broken manifest stops nobody here: what it named is found by its own header.
        """
        found: dict[str, Variant] = {}
        referenced: set[str] = set()
        for name in self:
            try:
                document = self[name]
            except StoreError:
                continue
            referenced |= {variant.artifact for variant in document.artifacts}
            candidates = {s.identity: s.variants[RAW] for s in document.segments if RAW in s.variants}
            if document.prefix_artifact:
                candidates[document.prefix["identity"]] = document.prefix_artifact
            found |= {identity: variant for identity, variant in candidates.items() if self.holds(variant)}
        for path in self._artifact_files():
            if path.stem not in referenced:
                try:
                    stray = Artifact.open(path, expected=path.stem, calibrations=self.calibrations)
                except ArtifactError:
                    continue
                found.setdefault(stray.meta["identity"], Variant(path.stem, stray.nbytes))
        return found

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Makes the store if need be, and removes what killed writers left."""

        def first() -> None:
            fs.remove_temporaries(self.root)
            self._mark()

        with fs.as_store_errors(self.root):
            fs.make_directory(self.root)
            with fs.locked_shared(self._lock, when_alone=first):
                self._mark()  # in case the first was killed before it did
                yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Held while a manifest is read and replaced, so that of two writers' changes to it none is lost."""
        with fs.as_store_errors(self.root), fs.locked(self.root / MARKER):
            yield

    def put(self, content: Content) -> Variant:
        """Stores an artifact; the same content is stored once."""
        digest, chunks = serialize(content)
        variant = Variant(digest, sum(len(chunk) for chunk in chunks))
        if not self.holds(variant):
            fs.write_atomic(self.path_of(variant), chunks)
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
        fs.write_atomic(self._manifest_path(document.name), [document.to_bytes()])

    def remove(self, name: str) -> None:
        """Forgets a document. Its artifacts stay until ``collect``, since others may share them."""
        self[name]
        path = self._manifest_path(name)
        with fs.as_store_errors(path):
            path.unlink()
            fs.fsync_directory(path.parent)

    def discard(self, variant: Variant) -> None:
        """Removes a broken artifact's file, so that it is missing and will be made again."""
        with fs.as_store_errors(self.root):
            self.path_of(variant).unlink(missing_ok=True)

    def collect(self, *, dry_run: bool = False) -> list[Path]:
        """Removes the artifacts that no document refers to, and returns their paths. Waits for writers to end.

        Calibrations stay: each was made on purpose, and serves documents to come.
        """
        if not self._lock.exists():
            return []
        with fs.as_store_errors(self.root), fs.locked(self._lock):
            used = {variant.artifact for document in self.values() for variant in document.artifacts}
            unused = [path for path in self._artifact_files() if path.stem not in used]
            if not dry_run:
                fs.remove_temporaries(self.root)
                for path in unused:
                    path.unlink()
        return unused

    def purge(self, name: str) -> bool:
        """Forgets a document, and removes the artifacts that no other refers to; nothing if somebody is writing.

        Returns whether it is gone now.
        """
        if name not in self:
            return True
        with fs.as_store_errors(self.root), fs.locked_if_free(self._lock) as is_alone:
            if is_alone:
                own = self[name].artifacts
                # The manifest first: an artifact too many is collected one day, one that is missing is an error.
                self.remove(name)
                used = {variant.artifact for document in self.values() for variant in document.artifacts}
                for variant in own:
                    if variant.artifact not in used:
                        self.discard(variant)
        return is_alone

    def check_name(self, name: str) -> None:
        """Raises ``StoreError`` for what cannot be a document's name here."""
        self._manifest_path(name)

    # Inside

    def _mark(self) -> None:
        marker = self.root / MARKER
        if not marker.exists():
            fs.write_atomic(marker, [canonical_json({"format": FORMAT}) + b"\n"])

    def _is_nearly_empty(self) -> bool:
        """No more than a writer leaves that was killed before it wrote the marker."""
        return self.root.is_dir() and all(
            path == self._lock or path.name.startswith(fs.TEMPORARY) for path in self.root.iterdir()
        )

    @property
    def _lock(self) -> Path:
        return self.root / "lock"

    def _artifact_files(self) -> Iterator[Path]:
        return iter(sorted(self._artifacts.glob("??/*.safetensors")))

    def _variant(self, document: Document, segment: int, variant: str) -> Variant:
        if not 0 <= segment < len(document.segments):
            raise StoreError(
                document.name, f"has no segment {segment}", f"it has {len(document.segments)}, counted from 0"
            )
        variants = document.segments[segment].variants
        if variant not in variants:
            remedies = {RAW: "prefill it again", EXPECTED: "prefill with --neighbours"}
            recipe = variant.removesuffix(f"-{EXPECTED}")
            of = f" --of {EXPECTED}" if recipe != variant else ""
            remedy = remedies.get(variant, f"run kvtool compress {document.name} --recipe {recipe}{of}")
            raise StoreError(document.name, f"has no variant {variant!r}, only {', '.join(variants)}", remedy)
        found = variants[variant]
        if not self.holds(found):
            raise StoreError(
                document.name,
                f"its artifact {self.path_of(found)} is missing",
                "run the same prefill or compress again",
            )
        return found

    def _manifest_path(self, name: str) -> Path:
        return self.root / manifest_file(name)

    def _missing(self, name: str) -> DocumentMissing:
        names = list(self)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "kvtool ls shows what is there"
        if not names:
            hint = "the store is empty: run kvtool prefill first"
        return DocumentMissing(name, f"is not in the store {self}", hint)

    def _check_format(self, marker: Path) -> None:
        try:
            data = marker.read_bytes()
        except OSError as error:
            raise StoreError(marker, f"cannot be read ({error.strerror})", "check its permissions") from error
        check_format(data, str(marker))


class DocumentMissing(StoreError, KeyError):
    """A name, the ``subject``, that the store does not hold."""
