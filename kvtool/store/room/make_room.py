"""Removes documents, variants and artifacts of a store in a directory, as rules say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from kvtool.store.catalog.local import LocalCatalog, artifacts_of
from kvtool.store.manifest import Document
from kvtool.store.room.rules import Candidate, Choice, Reason, Rules, choose
from kvtool.system import files


@dataclass(frozen=True)
class Room:
    """What was removed, or would be: documents by name, documents that lost variants, and the files of artifacts.

    ``nbytes`` are those of the artifacts and calibrations that stay.
    """

    documents: Mapping[str, Reason]
    trimmed: Sequence[str]
    artifacts: Sequence[Path]
    nbytes: int


def stored_bytes(catalog: LocalCatalog) -> int:
    """Bytes of all artifacts and calibrations."""
    return _nbytes(catalog.artifact_files()) + _calibration_bytes(catalog)


def make_room(
    catalog: LocalCatalog,
    rules: Rules,
    *,
    need_bytes: int = 0,
    stray_seconds: float = 0.0,
    dry_run: bool = False,
    wait: bool = True,
) -> Room | None:
    """Applies ``rules``, and removes the artifacts that no document refers to, if they are at least ``stray_seconds`` old.

    Leaves ``need_bytes`` free below ``rules.max_bytes``, unless what is pinned or in use takes more. Waits for writers to end;
    without ``wait`` it does nothing and returns None if there are any. A ``dry_run`` waits for nobody.

    Raises ``StoreError`` if a manifest cannot be read, since what it needs is not known then.
    """
    is_empty = not catalog.root.is_dir()
    with nullcontext(True) if dry_run or is_empty else catalog.alone(wait=wait) as is_alone:
        if not is_alone:
            return None
        # Listed before the manifests are read: what is committed meanwhile is in use.
        found = _status(catalog.artifact_files())
        sizes = {path: status.st_size for path, status in found.items()}
        documents = {name: catalog.stored(name) for name in catalog}
        named = artifacts_of(documents.values())
        now = time.time()
        fresh = {
            path
            for path, status in found.items()
            if path.stem not in named and now - status.st_mtime < stray_seconds
        }
        other = _calibration_bytes(catalog) + sum(sizes[path] for path in fresh)
        candidates = [_candidate(catalog, document) for document in documents.values()]
        stored = {path.stem: size for path, size in sizes.items()}
        choice = choose(candidates, stored, rules, now, extra_bytes=other, need_bytes=need_bytes)
        removed, trimmed = (choice.removed, choice.trimmed) if dry_run else _apply(catalog, choice)
        left = {name: document for name, document in documents.items() if name not in removed}
        left |= {document.name: document for document in trimmed}
        named = artifacts_of(left.values())
        gone = [path for path in sizes if path.stem not in named and path not in fresh]
        if not dry_run and not is_empty:
            files.remove_temporaries(catalog.root)
            for path in gone:
                path.unlink(missing_ok=True)
        nbytes = other + sum(size for path, size in sizes.items() if path not in {*gone, *fresh})
        return Room(removed, [document.name for document in trimmed], gone, nbytes)


def _candidate(catalog: LocalCatalog, document: Document) -> Candidate:
    name, committed = document.name, catalog.committed(document.name)
    is_kept = name in catalog.pins or catalog.uses.is_used(name)
    return Candidate(document, committed, max(committed, catalog.uses.last(name) or 0.0), is_kept)


def _apply(catalog: LocalCatalog, choice: Choice) -> tuple[dict[str, Reason], list[Document]]:
    """Removes and changes manifests. Returns those that are gone and changed: all but those that are in use by now."""
    removed, trimmed = {}, []
    for name, reason in choice.removed.items():
        with catalog.uses.unused(name) as is_free:
            if is_free:
                catalog.remove(name)
                removed[name] = reason
    for document in choice.trimmed:
        with catalog.uses.unused(document.name) as is_free:
            if is_free:
                catalog.write_manifest(document)
                trimmed.append(document)
    return removed, trimmed


def _status(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """The status of the files that are still there."""
    found: dict[Path, os.stat_result] = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


def _nbytes(paths: Iterable[Path]) -> int:
    return sum(status.st_size for status in _status(paths).values())


def _calibration_bytes(catalog: LocalCatalog) -> int:
    return _nbytes(catalog.calibration_files())
