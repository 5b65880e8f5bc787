"""Stores whose files are read one by one: what buckets, directories and memory have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from kvtool import limits
from kvtool.artifact.sealed import sealed_size
from kvtool.digest import digest
from kvtool.errors import StoreError
from kvtool.store import layout
from kvtool.store.backends.backend import Listed, NotThere, Unreachable


class FileBackend(ABC):
    """A backend over the files that ``layout`` names. A subclass lists manifests and reads files and parts of them.

    Raises ``StoreError`` if there is no store of a known format at ``url``, where it may not be ``new``; not if nothing answers,
    since what was read before is kept.
    """

    url: str

    def __init__(self, *, new: bool = False) -> None:
        self._marker: layout.Marker | None = None
        self.is_new = False
        try:
            self._marker = self._read_marker()
        except NotThere:
            if not new:
                remedy = (
                    "name the folder that has it, or copy a store there as docs/how-to/share-a-store.md says"
                )
                raise StoreError(self.url, f"is not a kvtool store (no {layout.MARKER})", remedy) from None
            self._marker, self.is_new = layout.Marker(), True
        except Unreachable:
            pass

    @property
    def marker(self) -> layout.Marker:
        """What the store says of itself. Raises ``Unreachable`` while nothing answers."""
        if self._marker is None:
            self._marker = self._read_marker()
        return self._marker

    @marker.setter
    def marker(self, marker: layout.Marker) -> None:
        self._marker = marker

    def _read_marker(self) -> layout.Marker:
        data = b"".join(self._read(layout.MARKER, limits.MARKER_BYTES))
        return layout.read_marker(data, f"{self.url}/{layout.MARKER}")

    @abstractmethod
    def _manifests(self) -> Iterator[tuple[str, Listed]]:
        """Each file below ``manifests/``."""

    @abstractmethod
    def _open(self, file: str) -> tuple[int, Iterator[bytes]]:
        """A file's size in bytes, and its bytes in pieces."""

    @abstractmethod
    def _range(self, file: str, start: int, stop: int) -> bytes:
        """A file's bytes from ``start`` up to ``stop``."""

    @property
    def key(self) -> str:
        return digest(self.url.encode())[:32]

    def documents(self) -> Mapping[str, Listed]:
        documents: dict[str, Listed] = {}
        for file, listed in self._manifests():
            if not file.endswith(".json"):
                continue
            documents[layout.document_name(file)] = listed
            if len(documents) > limits.LISTED_DOCUMENTS:
                raise StoreError(self.url, f"lists more than {limits.LISTED_DOCUMENTS:,} documents")
        return documents

    def manifest(self, name: str) -> bytes:
        return b"".join(self._read(layout.manifest_file(name), limits.MANIFEST_BYTES))

    def artifact(self, digest: str, nbytes: int) -> Iterator[bytes]:
        return self._read(layout.artifact_file(digest), nbytes, sealed_size(nbytes))

    def parts(self, digest: str, ranges: Sequence[range]) -> Sequence[bytes]:
        file = layout.artifact_file(digest)
        return [self._range(file, wanted.start, wanted.stop) for wanted in ranges]

    def calibration(self, digest: str) -> Iterator[bytes]:
        return self._read(layout.calibration_file(digest), limits.CALIBRATION_BYTES)

    def _read(self, file: str, most: int, sealed: int | None = None) -> Iterator[bytes]:
        """A file's bytes in pieces: ``most`` at most, or as many as it has ``sealed``."""
        where = f"{self.url}/{file}"
        size, chunks = self._open(file)
        if size > most and size != sealed:
            reason = f"has {size:,} bytes, more than the {most:,} that it should"
            raise StoreError(where, reason, "nothing was kept")
        done = 0
        for chunk in chunks:
            done += len(chunk)
            if done > size:
                raise StoreError(where, f"sends more than its {size:,} bytes", "nothing was kept")
            yield chunk
        if done < size:
            raise Unreachable(where, f"broke off after {done:,} bytes", "run the same command again")
