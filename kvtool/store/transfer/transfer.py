"""Documents of one store → another: what is missing there, several artifacts at a time, and each manifest after its artifacts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from kvtool.errors import KvtoolError, StoreError
from kvtool.store.backends.backend import Unreachable
from kvtool.store.base import Store
from kvtool.store.manifest import Document, Variant
from kvtool.store.transfer.destination import Destination
from kvtool.system.files import DiskFull


@dataclass
class Report:
    """``nbytes`` of artifacts have come, of ``nbytes_total`` that were missing; calibrations are not counted."""

    copied: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    problems: list[KvtoolError] = field(default_factory=list)
    nbytes: int = 0
    nbytes_total: int = 0
    dry_run: bool = False

    def to_json(self, done: str) -> dict[str, Any]:
        """``done`` names the documents that were copied. ``bytes`` are those that came or, of a dry run, those that would."""
        return {
            "dry_run": self.dry_run,
            done: self.copied,
            "unchanged": self.unchanged,
            "problems": [error.to_json() for error in self.problems],
            "bytes": self.nbytes_total if self.dry_run else self.nbytes,
        }


def transfer(
    source: Store,
    destination: Destination,
    names: Sequence[str] | None,
    *,
    variant: str | None,
    overwrite: bool,
    decrypt: bool = False,
    dry_run: bool,
    on_progress: Callable[[Report], None],
) -> Report:
    """Copies documents, all by default, with their prefixes, calibrations, and all variants or one.

    What is there is not copied again, so that an interrupted run, started again, goes on. A document that is there with other
    variants gets these added; one of another text, model or prefix, or with another artifact for the same variant, is a
    problem unless it may ``overwrite`` that.

    What is encrypted stays so, unless the copies may ``decrypt`` it. Raises ``StoreError`` for a destination where it would not.
    """
    report = Report(dry_run=dry_run)
    if not (decrypt or dry_run):
        destination.encrypt_as(source)
    wanted: dict[str, Document] = {}
    missing: dict[str, list[Variant]] = {}

    def merged(old: Document | None, document: Document) -> Document:
        return _merged(old, document, overwrite, str(destination))

    for name in dict.fromkeys(source if names is None else names):
        try:
            document = _only(source[name], variant)
            old = destination.document(name)
            result = merged(old, document)
            parts = {part.artifact: part for part in document.artifacts}
            absent = [part for part in parts.values() if not destination.holds(part)]
        except KvtoolError as error:
            report.problems.append(error)
            # Each of the others would wait as long for nothing.
            if isinstance(error, Unreachable):
                return report
            continue
        if result == old and not absent:
            report.unchanged.append(name)
        else:
            wanted[name], missing[name] = document, absent
    every = {part.artifact: part for parts in missing.values() for part in parts}
    report.nbytes_total = sum(part.nbytes for part in every.values())
    if dry_run:
        report.copied += wanted
        return report
    with (
        destination.writing() if wanted else nullcontext(),
        _copies(source, destination, every, report, on_progress) as copies,
    ):
        for name, document in wanted.items():
            try:
                for part in missing[name]:
                    copies[part.artifact].result()
                for part in document.artifacts:
                    # What was there may have been removed to make room, before this began to write.
                    if part.artifact not in copies and not destination.holds(part):
                        destination.take(source, part, lambda _: None)
                destination.change(name, lambda old, new=document: merged(old, new))  # type: ignore[misc]
                report.copied.append(name)
            except (Unreachable, DiskFull) as error:
                report.problems.append(error)
                break
            except KvtoolError as error:
                report.problems.append(error)
    return report


@contextmanager
def _copies(
    source: Store,
    destination: Destination,
    artifacts: Mapping[str, Variant],
    report: Report,
    on_progress: Callable[[Report], None],
) -> Iterator[dict[str, Future[None]]]:
    """Copies artifacts, in their order; those that have not begun at the end of the context are left out."""
    counting, stopped = threading.Lock(), threading.Event()

    def came(nbytes: int) -> None:
        if stopped.is_set():
            raise _Stopped
        with counting:
            report.nbytes += nbytes
            on_progress(report)

    with ThreadPoolExecutor(destination.at_once, "copy") as pool:
        try:
            yield {
                digest: pool.submit(destination.take, source, variant, came)
                for digest, variant in artifacts.items()
            }
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """Ends a copy that nobody waits for any more."""


def _only(document: Document, variant: str | None) -> Document:
    if variant is None:
        return document
    if variant not in document.variants:
        reason = f"has no variant {variant!r} there, only {', '.join(document.variants)}"
        raise StoreError(document.name, reason)
    return document.with_variants([variant])


def _merged(old: Document | None, new: Document, overwrite: bool, where: str) -> Document:
    """``old`` with the variants of ``new``, or ``new`` if it is another document and may ``overwrite`` the old one."""
    if old is None:
        return new
    is_same = _without_variants(old) == _without_variants(new)
    differing = [
        name
        for ours, theirs in zip(old.segments, new.segments, strict=False)
        for name, variant in theirs.variants.items()
        if ours.variants.get(name, variant).artifact != variant.artifact
    ]
    if not overwrite and (differing or not is_same):
        part = f"its variant {differing[0]}" if is_same else "its text, model or prefix"
        reason = f"{part} is another in {where} than where it comes from"
        raise StoreError(new.name, reason, "--replace takes that one")
    if not is_same:
        return new
    pairs = zip(old.segments, new.segments, strict=True)
    segments = (replace(ours, variants={**ours.variants, **theirs.variants}) for ours, theirs in pairs)
    return replace(old, segments=tuple(segments)).signed_as(old, new)


def _without_variants(document: Document) -> Document:
    return document.with_variants([])
