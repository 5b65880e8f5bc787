"""Encrypting a store that is there: all artifacts and calibrations, with one key."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvtool.artifact.sealed import key_id_of, read_chunks, seal
from kvtool.artifact.store_key import StoreKey
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.layout import CONTENTS
from kvtool.store.sealing import key_of
from kvtool.system import files


@dataclass
class Report:
    """Files that were ``encrypted`` now, of ``total`` of the store."""

    encrypted: int = 0
    total: int = 0


def encrypt(
    catalog: LocalCatalog,
    key: StoreKey,
    *,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Encrypts with ``key`` what the store holds, and what is written to it from now on. Waits for writers to end.

    An interrupted run, started again, goes on: until then some files are encrypted and others are not, and all are read. What
    was encrypted with another key is decrypted with that one. Raises ``StoreError``, before anything is changed, if the
    environment does not have it.
    """
    due, total = _due(catalog, key)
    for id in {*map(key_id_of, due)} - {None}:
        key_of(str(id))
    if dry_run:
        return Report(len(due), total)
    # First, so that whoever begins to write from here on does not write in the clear.
    catalog.encrypt_with(key.id)
    with catalog.alone():
        due, total = _due(catalog, key)
        report = Report(0, total)
        for path in due:
            _encrypt(path, key)
            report.encrypted += 1
            on_progress(report)
    return report


def _due(catalog: LocalCatalog, key: StoreKey) -> tuple[list[Path], int]:
    """The files that are not encrypted with the key, and how many there are in all."""
    contents = (catalog.root / CONTENTS).glob("*.json")
    paths = [*catalog.artifact_files(), *catalog.calibration_files(), *sorted(contents)]
    return [path for path in paths if key_id_of(path) != key.id], len(paths)


def _encrypt(path: Path, key: StoreKey) -> None:
    status = path.stat()
    files.write_atomic(path, seal(read_chunks(path), key))
    # It is as old as it was: the newest calibration is the one that is taken.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
