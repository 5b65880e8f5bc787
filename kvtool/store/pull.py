"""Documents of a remote store → a local store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from kvtool.errors import KvtoolError, StoreError, UsageError
from kvtool.store.backends.backend import Unreachable
from kvtool.store.base import Store
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document, Variant
from kvtool.store.remote import RemoteStore
from kvtool.system.files import DiskFull


@dataclass
class Report:
    """``nbytes`` of artifacts have come, of ``nbytes_total`` that were not there; calibrations are not counted."""

    pulled: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    problems: list[KvtoolError] = field(default_factory=list)
    nbytes: int = 0
    nbytes_total: int = 0
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """``bytes`` are those that came or, of a dry run, those that would."""
        return {
            "dry_run": self.dry_run,
            "pulled": self.pulled,
            "unchanged": self.unchanged,
            "problems": [error.to_json() for error in self.problems],
            "bytes": self.nbytes_total if self.dry_run else self.nbytes,
        }


def pull(
    source: Store,
    store: Store,
    names: Sequence[str] | None = None,
    *,
    variant: str | None = None,
    replace: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Copies documents of a server or a bucket, all by default, with their prefixes, calibrations, and all variants or one.

    What ``store`` has is not fetched again, so that an interrupted run, started again, goes on. A document that ``store``
    has with other variants gets these added; one of another text, model or prefix, or with another artifact for the same
    variant, is a problem unless ``replace``. Raises ``UsageError`` if ``source`` is neither, ``StoreError`` if it
    cannot be asked what it has.
    """
    if not isinstance(source, RemoteStore):
        raise UsageError(
            source, "is not a server or a bucket", "expected http://HOST:PORT or s3://BUCKET/PREFIX"
        )
    if not isinstance(store, LocalStore):
        raise UsageError(store, "is read only", "name a directory with --store")
    report = Report(dry_run=dry_run)
    wanted: dict[str, Document] = {}
    missing: dict[str, dict[str, Variant]] = {}
    for name in dict.fromkeys(source if names is None else names):
        try:
            document = _only(source[name], variant)
            there = _there(store, name, replace)
            result = _merged(there, document, replace, store)
        except KvtoolError as error:
            report.problems.append(error)
            continue
        absent = {part.artifact: part for part in document.artifacts if not store.holds(part)}
        if result == there and not absent:
            report.unchanged.append(name)
        else:
            wanted[name], missing[name] = document, absent
    every = {digest: part for parts in missing.values() for digest, part in parts.items()}
    report.nbytes_total = sum(part.nbytes for part in every.values())
    if dry_run:
        report.pulled += wanted
        return report

    def came(nbytes: int) -> None:
        report.nbytes += nbytes
        on_progress(report)

    with store.writing() if wanted else nullcontext():
        for name, document in wanted.items():
            try:
                for part in missing[name].values():
                    if not store.holds(part):
                        source.fetch(part, store, came)
                with store.changing():
                    store.commit(_merged(_there(store, name, replace), document, replace, store))
                report.pulled.append(name)
            except (Unreachable, DiskFull) as error:
                report.problems.append(error)
                break
            except KvtoolError as error:
                report.problems.append(error)
    return report


def _only(document: Document, variant: str | None) -> Document:
    if variant is None:
        return document
    if variant not in document.variants:
        raise StoreError(
            document.name, f"has no variant {variant!r} there, only {', '.join(document.variants)}"
        )
    segments = [dataclasses.replace(s, variants={variant: s.variants[variant]}) for s in document.segments]
    return dataclasses.replace(document, segments=tuple(segments))


def _there(store: LocalStore, name: str, replace: bool) -> Document | None:
    try:
        return store[name]
    except DocumentMissing:
        return None
    except StoreError:
        if replace:
            return None
        raise


def _merged(there: Document | None, new: Document, replace: bool, store: LocalStore) -> Document:
    """``there`` with the variants of ``new``."""
    if there is None:
        return new
    is_same = _bare(there) == _bare(new)
    differing = [
        name
        for ours, theirs in zip(there.segments, new.segments, strict=False)
        for name, variant in theirs.variants.items()
        if ours.variants.get(name, variant).artifact != variant.artifact
    ]
    if not replace and (differing or not is_same):
        what = f"its variant {differing[0]}" if is_same else "its text, model or prefix"
        raise StoreError(
            new.name, f"{what} is another in {store} than where it comes from", "--replace takes that one"
        )
    if not is_same:
        return new
    segments = [
        dataclasses.replace(ours, variants={**ours.variants, **theirs.variants})
        for ours, theirs in zip(there.segments, new.segments, strict=True)
    ]
    return dataclasses.replace(there, segments=tuple(segments))


def _bare(document: Document) -> Document:
    return dataclasses.replace(
        document, segments=tuple(dataclasses.replace(s, variants={}) for s in document.segments)
    )
