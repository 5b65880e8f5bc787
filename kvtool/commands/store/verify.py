"""kvtool verify: check that every byte of a store is as it was written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DocumentNames, StoreFlags, with_settings
from kvtool.counts import counted
from kvtool.errors import DONE, GATE, KvtoolError

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.store.base import Store


@dataclass(frozen=True)
class Broken:
    """Something that is not as it was written, in the first of the documents that use it; None for a calibration."""

    document: str | None
    error: KvtoolError

    def __str__(self) -> str:
        return str(self.error) if self.document is None else f"{self.document}: {self.error}"

    def to_json(self) -> dict[str, str | None]:
        return {"document": self.document, **self.error.to_json()}


@dataclass(frozen=True)
class Report:
    """Digests of artifacts and calibrations: ``intact`` ones, ``broken`` ones and, of these, those that were ``removed``.

    A document whose manifest cannot be read is ``broken`` by its name. ``outdated`` are blends, each with the documents that are
    others by now: they are as they were written.
    """

    intact: set[str] = field(default_factory=set)
    broken: dict[str, Broken] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    outdated: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        broken = {key: entry.to_json() for key, entry in self.broken.items()}
        return {
            "intact": len(self.intact),
            "broken": broken,
            "removed": self.removed,
            "outdated": self.outdated,
        }


@with_settings(StoreFlags)
def run(
    names: DocumentNames = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Remove broken artifacts, so that prefill or compress makes them again."
        ),
    ] = False,
    signed_by: Annotated[
        list[Path] | None,
        typer.Option(
            help="Check too that each document is signed by one of the public keys in this PEM file. Give it again for each "
            "further one (default: KVTOOL_SIGNED_BY)."
        ),
    ] = None,
    *,
    settings: Settings,
    as_json: AsJson = False,
) -> int:
    """Read every artifact and calibration and check every digest, and every signature that is required.

    Exits with 4 if anything is not as it was written, is not signed as required, or names a calibration that is missing.
    """
    from kvtool.store.open import open_store
    from kvtool.store.sealing import key_of
    from kvtool.store.trust.keys import trusted_keys

    store = open_store(settings.store, existing=True)
    if store.encrypted_with:
        # Said once, and not of every file. None of them is broken.
        key_of(store.encrypted_with)
    if signed_by:
        store.trust = store.trust.also(trusted_keys(signed_by))
    report = Report()
    _check_documents(store, names, remove, report)
    if not names:
        _check_calibrations(store, remove, report)
    _find_outdated(store, names, report)
    if not as_json:
        for entry in report.broken.values():
            output.print_error(entry)
    output.emit(report.to_json(), render(report), as_json)
    return GATE if report.broken else DONE


def _check_documents(store: Store, names: Sequence[str] | None, remove: bool, report: Report) -> None:
    """Raises KvtoolError for a document that was named and cannot be read."""
    from kvtool.artifact.reading import BrokenArtifact
    from kvtool.store.trust.signatures import NotSigned

    for name in names or store:
        try:
            variants = store[name].artifacts
        except KvtoolError as error:
            if names and not isinstance(error, NotSigned):
                raise
            report.broken[name] = Broken(None, error)
            continue
        for variant in variants:
            digest = variant.artifact
            if digest in report.intact or digest in report.broken:
                continue
            try:
                store.open_artifact(variant).verify()
                report.intact.add(digest)
            except KvtoolError as error:
                report.broken[digest] = Broken(name, error)
                # What a newer kvtool wrote, or what cannot be read now, is not ours to remove.
                if remove and isinstance(error, BrokenArtifact):
                    store.discard(variant)
                    report.removed.append(digest)


def _check_calibrations(store: Store, remove: bool, report: Report) -> None:
    from kvtool.store.calibrations import BrokenCalibration

    for digest in store.calibrations:
        try:
            _ = store.calibrations[digest]
            report.intact.add(digest)
        except KvtoolError as error:
            report.broken[digest] = Broken(None, error)
            if remove and isinstance(error, BrokenCalibration):
                store.calibrations.discard(digest)
                report.removed.append(digest)


def _find_outdated(store: Store, names: Sequence[str] | None, report: Report) -> None:
    from kvtool.blending.record import record_of

    for name in names or store:
        with suppress(KvtoolError):  # What is broken was named above.
            if (record := record_of(store, name)) and (changed := record.outdated(store)):
                report.outdated[name] = list(changed)


def render(report: Report) -> output.Lines:
    removed = f", {len(report.removed)} removed" if report.removed else ""
    intact = counted(len(report.intact), "artifact is", "artifacts are")
    summary = f"{intact} intact, {counted(len(report.broken), 'is', 'are')} not{removed}"
    notes = [
        f"{name} is out of date: its documents are others by now ({', '.join(changed)}); kvtool blend makes it again"
        for name, changed in report.outdated.items()
    ]
    return output.Lines(notes=[summary, *notes])
