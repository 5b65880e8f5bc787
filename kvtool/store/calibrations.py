"""The calibrations of a store: files named by their digests, small, read whole and checked whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kvtool import limits
from kvtool.codecs import Calibration, CodecError, Recipe
from kvtool.digest import digest, is_digest
from kvtool.errors import ArtifactError, BrokenFile, KvtoolError, UsageError
from kvtool.store.verified_write import receive
from kvtool.system import files

if TYPE_CHECKING:
    from kvtool.store.local import Store

Find: TypeAlias = Callable[[Recipe], Calibration]
"""Gives a recipe the calibration that it needs. Raises KvtoolError if it has none."""

Make: TypeAlias = Callable[[Recipe, str, str], Calibration]
"""Makes one for a recipe, and for the model of this fingerprint and this name."""


class Calibrations(Mapping[str, Calibration]):
    """Calibrations by digest, read from ``folder`` when they are first asked for.

    Raises ``ArtifactError``, naming the file, for one that is not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
            files.write_atomic(self.path_of(calibration.digest), [calibration.to_bytes()])

    def receive(self, digest: str, chunks: Iterable[bytes]) -> int:
        """Keeps one that was made elsewhere; its bytes. Raises ``Refused`` unless it is the one of that digest."""
        return receive(self.path_of(digest), digest, chunks, lambda path: _read(path, digest))

    def discard(self, digest: str) -> None:
        """Removes a broken one's file, so that it is missing."""
        self._read.pop(digest, None)
        with files.as_store_errors(self.folder):
            self.path_of(digest).unlink(missing_ok=True)

    def newest(self, method: str, model: str) -> Calibration | None:
        """The last one written of that method, for the model of that fingerprint."""
        by_age = sorted(self, key=lambda digest: (self.path_of(digest).stat().st_mtime_ns, digest))
        found = (self[digest] for digest in reversed(by_age))
        return next((one for one in found if (one.method, one.model) == (method, model)), None)


class BrokenCalibration(BrokenFile):
    """Its bytes are not those that its name says."""


def _read(path: Path, expected: str) -> Calibration:
    try:
        if (size := path.stat().st_size) > limits.CALIBRATION_BYTES:
            raise ArtifactError(path, f"has {size} bytes, a calibration at most {limits.CALIBRATION_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            path, f"cannot be read ({error.strerror})", "check the disk and its permissions"
        ) from error
    if digest(data) != expected:
        raise BrokenCalibration(
            path,
            "has changed since it was written (digest differs)",
            (
                "nothing was loaded; copy it again from where it came from, or let kvtool verify --remove take it out, "
                "calibrate and compress again"
            ),
        )
    try:
        return Calibration.from_bytes(data)
    except CodecError as error:
        raise ArtifactError(path, error, "upgrade kvtool if a newer one wrote it") from error


class MissingCalibration(UsageError):
    """A recipe needs a calibration, and the store has none that fits."""


def finder(
    store: Store, names: Sequence[str], given: Calibration | str | None = None, make: Make | None = None
) -> Find:
    """What finds the calibration for compressing the documents ``names``.

    That is ``given`` or, if it is a digest, the store's of that digest; else the store's newest of the recipe's method
    for the documents' model; else what ``make`` makes. Raises ``MissingCalibration`` where there is none,
    ``UsageError`` where there are several models.
    """

    known: dict[str, Calibration] = {}

    def find(recipe: Recipe) -> Calibration:
        # One for a whole run, whatever is put into the store meanwhile.
        if recipe.calibration not in known:
            known[recipe.calibration] = look(recipe)
        return known[recipe.calibration]

    def look(recipe: Recipe) -> Calibration:
        if isinstance(given, Calibration):
            return given
        if given is not None:
            if given not in store.calibrations:
                have = ", ".join(store.calibrations) or "none"
                raise UsageError(f"calibration {given}", f"is not in the store {store}", f"it has: {have}")
            return store.calibrations[given]
        fingerprint, model = _model(store, names)
        if found := store.calibrations.newest(recipe.calibration, fingerprint):
            return found
        if make is not None:
            return make(recipe, fingerprint, model)
        raise MissingCalibration(
            f"recipe {recipe.name!r}",
            f"needs a calibration of method {recipe.calibration!r} for {model}, and {store} has none",
            f"run kvtool calibrate --recipe {recipe.name} first",
        )

    return find


def _model(store: Store, names: Sequence[str]) -> tuple[str, str]:
    """Fingerprint and name of the model that the documents were prefilled with; those that cannot be read are not asked."""
    found: dict[str, str] = {}
    unread: list[KvtoolError] = []
    for name in names:
        try:
            model = store[name].model
        except KvtoolError as error:
            unread.append(error)
        else:
            found[model["fingerprint"]] = model["name"]
    if len(found) > 1:
        models = ", ".join(f"{model} ({fingerprint[:12]}…)" for fingerprint, model in found.items())
        raise UsageError(
            store.root,
            f"the documents were prefilled with several models, {models}, and a calibration is of one",
            "name documents of one model",
        )
    if not found:
        raise unread[0] if unread else UsageError(store.root, "has no documents to compress")
    return next(iter(found.items()))
