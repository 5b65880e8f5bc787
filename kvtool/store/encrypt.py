"""Encrypting a store that is there: all artifacts and calibrations, with one key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvtool import limits
from kvtool.artifact.sealed import key_id_of, open_file, seal
from kvtool.artifact.store_key import StoreKey
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.layout import CALIBRATIONS
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

    An interrupted run, started again, goes on: until then some files are encrypted and others are not, and all are read. What was
    encrypted with another key is decrypted with that one, which the environment must have.
    """
    calibrations = (catalog.root / CALIBRATIONS).glob("*.safetensors")
    paths = [*catalog.artifact_files(), *sorted(calibrations)]
    due = [path for path in paths if key_id_of(path) != key.id]
    report = Report(len(due) if dry_run else 0, len(paths))
    if dry_run:
        return report
    # First, so that nothing is written in the clear once this has begun.
    catalog.encrypt_with(key.id)
    with catalog.alone():
        for path in due:
            if path.exists():
                _encrypt(path, key)
                report.encrypted += 1
                on_progress(report)
    return report


def _encrypt(path: Path, key: StoreKey) -> None:
    with open_file(path) as file:
        files.write_atomic(path, seal(iter(lambda: file.read(limits.MIB), b""), key))
