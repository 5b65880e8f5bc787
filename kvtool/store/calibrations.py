"""The calibrations of a store: files named by their digests, small, read whole and checked whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from kvtool import limits
from kvtool.artifact.sealed import open_file
from kvtool.codecs import Calibration, CodecError
from kvtool.digest import digest, is_digest
from kvtool.errors import ArtifactError, BrokenFile
from kvtool.store.sealing import Sealing
from kvtool.store.verified_write import receive
from kvtool.system import files


class Calibrations(Mapping[str, Calibration]):
    """Calibrations by digest, read from ``folder`` when they are first asked for.

    Raises ``ArtifactError``, naming the file, for one that is not what was written. ``sealing`` is the store's as it is then.
    """

    def __init__(self, folder: Path, sealing: Callable[[], Sealing] = Sealing) -> None:
        self.folder, self._sealing = folder, sealing
        self._read: dict[str, Calibration] = {}

    def __getitem__(self, digest: str) -> Calibration:
        if digest not in self:
            raise KeyError(digest)
        if digest not in self._read:
            self._read[digest] = _read(self.path_of(digest), digest)
        return self._read[digest]

    def __contains__(self, digest: object) -> bool:
        return is_digest(digest) and self.path_of(str(digest)).is_file()

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("*.safetensors")) if path.stem in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def path_of(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def put(self, calibration: Calibration) -> None:
        """Writes it; the same calibration is written once."""
        if calibration.digest not in self:
            chunks = self._sealing().stored([calibration.to_bytes()], calibration.digest)
            files.write_atomic(self.path_of(calibration.digest), chunks)

    def receive(self, digest: str, chunks: Iterable[bytes]) -> int:
        """Stores a remote one; returns its bytes. Raises ``Refused`` unless it is the one of that digest."""
        stored = self._sealing().stored(chunks, digest)
        return receive(self.path_of(digest), digest, stored, lambda path: _read(path, digest))

    def discard(self, digest: str) -> None:
        """Removes a broken one's file, so that it is missing."""
        self._read.pop(digest, None)
        with files.as_store_errors(self.folder):
            self.path_of(digest).unlink(missing_ok=True)

    def newest(self, method: str, model: str) -> Calibration | None:
        """The last one written of that method, for the model of that fingerprint."""
        by_age = sorted(self, key=lambda digest: (self.path_of(digest).stat().st_mtime_ns, digest))
        calibrations = (self[digest] for digest in reversed(by_age))
        return next((c for c in calibrations if (c.method, c.model) == (method, model)), None)


class BrokenCalibration(BrokenFile):
    """Its bytes are not those that its name says."""


def _read(path: Path, expected: str) -> Calibration:
    try:
        if (size := path.stat().st_size) > limits.CALIBRATION_BYTES:
            raise ArtifactError(path, f"has {size} bytes, a calibration at most {limits.CALIBRATION_BYTES}")
        with open_file(path) as file:
            data = file.read()
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise ArtifactError(path, reason, "check the disk and its permissions") from error
    if digest(data) != expected:
        remedy = (
            "nothing was loaded; copy it again from where it came from, or let kvtool verify --remove take it out, "
            "calibrate and compress again"
        )
        raise BrokenCalibration(path, "has changed since it was written (digest differs)", remedy)
    try:
        return Calibration.from_bytes(data)
    except CodecError as error:
        raise ArtifactError(path, error, "upgrade kvtool if a newer one wrote it") from error
