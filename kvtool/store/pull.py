"""Documents of a remote store → a local store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
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
    """``nbytes`` of artifacts have come, of ``nbytes_total`` that were missing; calibrations are not counted."""

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
        expected = "expected http://HOST:PORT or s3://BUCKET/PREFIX"
        raise UsageError(source, "is not a server or a bucket", expected)
    if not isinstance(store, LocalStore):
        raise UsageError(store, "is read only", "name a directory with --store")
    report = Report(dry_run=dry_run)
    wanted: dict[str, Document] = {}
    missing: dict[str, dict[str, Variant]] = {}
    for name in dict.fromkeys(source if names is None else names):
        try:
            document = _only(source[name], variant)
            old = _existing(store, name, replace)
            result = _merged(old, document, replace, store)
        except KvtoolError as error:
            report.problems.append(error)
            continue
        absent = {part.artifact: part for part in document.artifacts if not store.holds(part)}
        if result == old and not absent:
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
                    store.commit(_merged(_existing(store, name, replace), document, replace, store))
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
        reason = f"has no variant {variant!r} there, only {', '.join(document.variants)}"
        raise StoreError(document.name, reason)
    segments = (replace(s, variants={variant: s.variants[variant]}) for s in document.segments)
    return replace(document, segments=tuple(segments))


def _existing(store: LocalStore, name: str, overwrite: bool) -> Document | None:
    try:
        return store[name]
    except DocumentMissing:
        return None
    except StoreError:
        if overwrite:
            return None
        raise


def _merged(old: Document | None, new: Document, overwrite: bool, store: LocalStore) -> Document:
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
        reason = f"{part} is another in {store} than where it comes from"
        raise StoreError(new.name, reason, "--replace takes that one")
    if not is_same:
        return new
    pairs = zip(old.segments, new.segments, strict=True)
    segments = (replace(ours, variants={**ours.variants, **theirs.variants}) for ours, theirs in pairs)
    return replace(old, segments=tuple(segments))


def _without_variants(document: Document) -> Document:
    return replace(document, segments=tuple(replace(s, variants={}) for s in document.segments))
