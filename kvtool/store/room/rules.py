"""Which documents and variants of a store stay, by age, last use, variant and size. Nothing is removed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from kvtool.store.manifest import Document


@dataclass(frozen=True)
class Rules:
    """What stays; None where there is no such rule.

    Documents that were committed ``max_age`` seconds ago at most, and used ``max_idle`` seconds ago at most. Of each of these,
    ``variants``. Of the rest, those that were used last, as many as take ``max_bytes`` at most.
    """

    max_age: float | None = None
    max_idle: float | None = None
    variants: frozenset[str] | None = None
    max_bytes: int | None = None


class Reason(StrEnum):
    """The rule that removes a document or a variant."""

    AGE = "age"
    IDLE = "idle"
    VARIANT = "variant"
    SIZE = "size"


@dataclass(frozen=True)
class Candidate:
    """A document, and when it was committed and used last, in seconds since 1970.

    ``is_kept`` if it is pinned or in use: then no rule removes it or a variant of it.
    """

    document: Document
    committed: float
    used: float
    is_kept: bool = False


@dataclass(frozen=True)
class Choice:
    """The documents that go, by name; those that lose variants, as they are without; and what the rest takes, in bytes."""

    removed: Mapping[str, Reason] = field(default_factory=dict)
    trimmed: Sequence[Document] = ()
    nbytes: int = 0


def choose(
    candidates: Iterable[Candidate],
    stored: Mapping[str, int],
    rules: Rules,
    now: float,
    *,
    extra_bytes: int = 0,
    need_bytes: int = 0,
) -> Choice:
    """Applies ``rules``. An artifact that several documents share counts once, with the bytes that are ``stored`` by its digest.

    ``extra_bytes`` are in the store beside the documents' artifacts, and ``need_bytes`` are to find room in it: both count for
    ``rules.max_bytes``.
    """
    removed: dict[str, Reason] = {}
    trimmed: list[Document] = []
    staying: list[Candidate] = []
    for candidate in candidates:
        if reason := _outlived(candidate, rules, now):
            removed[candidate.document.name] = reason
            continue
        changed = _trimmed(candidate, rules.variants)
        if changed is not candidate:
            trimmed.append(changed.document)
        staying.append(changed)
    uses = Counter(digest for candidate in staying for digest in _digests(candidate))
    nbytes = extra_bytes + sum(stored.get(digest, 0) for digest in uses)
    for candidate in sorted(staying, key=lambda candidate: candidate.used):
        if rules.max_bytes is None or nbytes + need_bytes <= rules.max_bytes:
            break
        if not candidate.is_kept:
            removed[candidate.document.name] = Reason.SIZE
            uses -= Counter(_digests(candidate))
            nbytes -= sum(stored.get(digest, 0) for digest in _digests(candidate) if not uses[digest])
    remaining = [document for document in trimmed if document.name not in removed]
    return Choice(removed, remaining, nbytes)


def _outlived(candidate: Candidate, rules: Rules, now: float) -> Reason | None:
    if candidate.is_kept:
        return None
    if rules.max_age is not None and now - candidate.committed > rules.max_age:
        return Reason.AGE
    if rules.max_idle is not None and now - candidate.used > rules.max_idle:
        return Reason.IDLE
    return None


def _trimmed(candidate: Candidate, variants: frozenset[str] | None) -> Candidate:
    """The document without its other variants. As it is if it has none of ``variants``: nothing would be left of it."""
    document = candidate.document
    if variants is None or candidate.is_kept or not variants & set(document.variants):
        return candidate
    kept = document.with_variants(variants)
    return candidate if kept == document else replace(candidate, document=kept)


def _digests(candidate: Candidate) -> set[str]:
    return {variant.artifact for variant in candidate.document.artifacts}
