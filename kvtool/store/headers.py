"""Artifacts as far as their token ids: a remote store's headers, fetched without the keys and values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from kvtool import limits
from kvtool.artifact.read import Artifact, Fetch
from kvtool.artifact.reading import BrokenArtifact
from kvtool.artifact.sealed import MAGIC, key_id_of, read_parts, sealed_range, sealed_size, whole_chunks
from kvtool.codecs.spec import TOKEN_IDS
from kvtool.errors import StoreError
from kvtool.store.base import Store
from kvtool.store.calibrations import Calibrations
from kvtool.store.manifest import Document, Segment, Variant
from kvtool.store.remote import FetchedCalibrations, RemoteStore
from kvtool.system import files
from kvtool.system.cache_dir import cache_dir

FIRST = sealed_size(64 * limits.KIB)
"""Bytes that are asked for before it is known how many are needed. Of most artifacts they are enough, sealed or not."""


def headers_of(store: Store) -> Store:
    """A view of ``store`` for readers of headers and token ids. Of a remote store, keys and values are not fetched."""
    return Headers(store) if isinstance(store, RemoteStore) else store


def segment_headers(store: Store, document: Document, segment: Segment, variant: str) -> list[Artifact]:
    """The artifacts that a segment's cache is loaded from, prefix first, for readers of headers and token ids.

    Raises ``StoreError`` if one of them is of another model than the manifest says.
    """
    headers = headers_of(store)
    parts = [headers.open_artifact(artifact) for artifact in document.artifacts_of(segment, variant)]
    if any(part.meta["model"]["fingerprint"] != document.model["fingerprint"] for part in parts):
        reason = "has artifacts of another model than its manifest says"
        raise StoreError(document.name, reason, "prefill it again")
    return parts


def parts_of(store: Store) -> Store:
    """A view of ``store`` for readers of parts. Of a remote store, these alone are fetched."""
    return Parts(store) if isinstance(store, RemoteStore) else store


class Headers(Store):
    """A view of ``remote`` whose artifacts have headers and token ids alone, unless they were fetched whole.

    Reading their keys and values fails. A header is kept as a file with a hole, so that it is opened and checked as any
    artifact is: its digest is taken over the header, which has the digests of the rest.
    """

    def __init__(self, remote: RemoteStore) -> None:
        self.remote = remote
        self._folder = cache_dir() / "heads" / remote.backend.key

    def __str__(self) -> str:
        return str(self.remote)

    def __getitem__(self, name: str) -> Document:
        return self.remote[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.remote)

    @property
    def calibrations(self) -> Calibrations:
        return self.remote.calibrations

    def committed(self, name: str) -> float:
        return self.remote.committed(name)

    def using(self, *names: str) -> AbstractContextManager[None]:
        return self.remote.using(*names)

    def holds(self, variant: Variant) -> bool:
        return self.remote.holds(variant)

    def locate_artifact(self, digest: str) -> Path:
        return self.remote.locate_artifact(digest)

    def locate_calibration(self, digest: str) -> Path:
        return self.remote.locate_calibration(digest)

    def discard(self, variant: Variant) -> None:
        self._path(variant).unlink(missing_ok=True)

    def open_artifact(self, variant: Variant) -> Artifact:
        if self.remote.cache.holds(variant):
            return self.remote.cache.open_artifact(variant)
        path = self._path(variant)
        try:
            if path.is_file():
                return self._opened(path, variant)
        except BrokenArtifact:
            pass  # It is no more than a copy.
        files.write_atomic(path, self._header(variant), lambda temporary: self._check(temporary, variant))
        return self._opened(path, variant)

    def _path(self, variant: Variant) -> Path:
        return self._folder / f"{variant.artifact}.safetensors"

    def _check(self, temporary: Path, variant: Variant) -> None:
        is_sealed = key_id_of(temporary) is not None
        os.truncate(temporary, sealed_size(variant.nbytes) if is_sealed else variant.nbytes)
        _ = self._opened(temporary, variant).token_ids

    def _opened(self, path: Path, variant: Variant) -> Artifact:
        calibrations = FetchedCalibrations(self.calibrations, self.remote.backend)
        return Artifact.open(path, expected=variant.artifact, calibrations=calibrations)

    def _header(self, variant: Variant) -> Iterator[bytes]:
        """The stored file's bytes up to the end of its token ids, as far as they can be told from what comes."""
        plain, stored, end = b"", b"", min(FIRST, variant.nbytes)
        while end > len(stored):
            (part,) = self.remote.backend.parts(variant.artifact, [range(len(stored), end)])
            yield part
            stored += part
            plain = _plain(variant, stored)
            stop = min(_needed(plain), variant.nbytes)
            if not part or stop <= len(plain):
                return
            end = sealed_range(range(stop), variant.nbytes).stop if stored.startswith(MAGIC) else stop


def _plain(variant: Variant, stored: bytes) -> bytes:
    """The beginning of a file, of whose stored file, sealed or not, ``stored`` is the beginning."""
    if not stored.startswith(MAGIC):
        return stored
    if not (known := range(whole_chunks(len(stored), variant.nbytes))):
        return b""
    (plain,) = read_parts(
        lambda ranges: [stored[one.start : one.stop] for one in ranges],
        variant.nbytes,
        [known],
        variant.artifact,
    )
    return plain


def _needed(plain: bytes) -> int:
    """The bytes that a file has up to the end of its token ids, or of its header, as far as its beginning tells."""
    start = 8 + int.from_bytes(plain[:8], "little")
    if start > 8 + limits.HEADER_BYTES:
        return 0  # None of ours, as the check then says.
    if start > len(plain):
        return start
    try:
        return start + int(json.loads(plain[8:start])[TOKEN_IDS]["data_offsets"][1])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return 0


class Parts(Headers):
    """A view whose artifacts are read in parts, by ``artifact.pages``, where they were not fetched whole. No part is kept."""

    def open_artifact(self, variant: Variant) -> Artifact:
        artifact = super().open_artifact(variant)
        if self.remote.cache.holds(variant):
            return artifact
        fetch: Fetch = partial(self.remote.backend.parts, variant.artifact)
        if key_id_of(artifact.path) is not None:
            fetch = partial(read_parts, fetch, variant.nbytes, where=variant.artifact)
        return replace(artifact, fetch=fetch)
