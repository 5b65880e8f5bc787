"""What a stored blend is made of, as its artifact says, and which of its documents are others by now."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kvtool.blending.layout import Cached, Layout, Part, Text
from kvtool.errors import ArtifactError, KvtoolError, StoreError
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import RAW, Document

SOURCE = "blend"
"""The entry of an artifact's ``source`` that has the record."""

CHANGED, MISSING = "has changed since", "is no longer in the store"
OUTDATED, UNREADABLE = "is out of date itself", "cannot be read"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlendedSegment:
    """A segment whose cache was blended: its ``identity`` as the document's manifest has it, and the ``artifact``'s digest."""

    identity: str
    variant: str
    artifact: str


@dataclass(frozen=True)
class BlendedPart:
    """A document with its ``segments``, or plain ``text``.

    ``variant`` and ``segment`` are set where one of them was asked for by name.
    """

    document: str | None = None
    variant: str | None = None
    segment: int | None = None
    segments: tuple[BlendedSegment, ...] = ()
    text: str | None = None

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(segment.identity for segment in self.segments)

    def is_of(self, document: Document) -> bool:
        """Whether ``document`` has the segments that were blended, and no others."""
        identities = [segment.identity for segment in document.segments]
        if self.segment is not None:
            identities = identities[self.segment : self.segment + 1]
        return list(self.identities) == identities


@dataclass(frozen=True)
class BlendRecord:
    """The ``parts`` in their order, and the options with which they were blended."""

    parts: tuple[BlendedPart, ...]
    variant: str
    separator: str
    policy: str
    recompute: float

    @property
    def documents(self) -> tuple[str, ...]:
        """The documents' names, in order."""
        return tuple(part.document for part in self.parts if part.document is not None)

    @property
    def order(self) -> dict[str, Any]:
        """What was asked for, as JSON: two blends of one order differ only if a document has changed."""
        return {**self.to_json(), "parts": [{**asdict(part), "segments": None} for part in self.parts]}

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        parts = ({k: v for k, v in part.items() if v not in (None, ())} for part in body["parts"])
        return {**body, "parts": [{**part, **_listed(part)} for part in parts]}

    def outdated(self, store: Store, known: dict[str, str | None] | None = None) -> dict[str, str]:
        """The documents that are not those that were blended, or are blends that are out of date themselves, and why.

        ``known`` says what is wrong with the parts that were looked at already.
        """
        known = {} if known is None else known
        found: dict[str, str] = {}
        for part in self.parts:
            if part.document is None:
                continue
            if part.document not in store:
                found[part.document] = MISSING
            elif not part.is_of(store[part.document]):
                found[part.document] = CHANGED
            elif fault := _fault(store, part.document, known):
                found[part.document] = fault
        return found


def _fault(store: Store, name: str, known: dict[str, str | None]) -> str | None:
    """What is wrong with a blend; None for one that is as its documents are, and for any other document."""
    if name not in known:
        # Until it is known: no blend is made of itself.
        known[name] = OUTDATED
        try:
            record = record_of(store, name)
            known[name] = OUTDATED if record and record.outdated(store, known) else None
        except KvtoolError:
            known[name] = UNREADABLE
    return known[name]


def _listed(part: dict[str, Any]) -> dict[str, Any]:
    return {"segments": list(part["segments"])} if "segments" in part else {}


_ADAPTER = TypeAdapter(BlendRecord)


def record_of(store: Store, name: str) -> BlendRecord | None:
    """The record of a stored blend; None for a document that is none, or that was stored before there were records.

    No more of a remote store is fetched than a header. Raises ``ArtifactError`` for a record that is none.
    """
    document = store[name]
    if not document.is_blend:
        return None
    variants = document.segments[0].variants
    first = variants.get(RAW) or next(iter(variants.values()))
    source = headers_of(store).open_artifact(first).meta["source"]
    if SOURCE not in source:
        return None
    try:
        return _ADAPTER.validate_python(source[SOURCE])
    except ValidationError as error:
        reason = f"does not say what it was blended of ({error.error_count()} mistakes)"
        raise ArtifactError(name, reason, "remove it, and blend again") from None


def outdated_blends(store: Store, names: Iterable[str]) -> Iterator[StoreError]:
    """A warning for each of ``names`` that is a blend whose documents are others by now."""
    for name in dict.fromkeys(names):
        record = record_of(store, name)
        if record and (outdated := record.outdated(store)):
            reason = "; ".join(f"{document} {why}" for document, why in outdated.items())
            yield StoreError(name, f"is a blend, and {reason}", "kvtool blend makes it again")


def sources_of(store: Store, names: Iterable[str]) -> set[str]:
    """``names``, and those of all documents that the blends among them were made of, also by way of other blends."""
    found, new = set[str](), set(names)
    while new:
        found |= new
        records = [record_of(store, name) for name in new if name in store]
        new = {name for record in records if record for name in record.documents} - found
    return found


def log_outdated(store: Store, names: Iterable[str]) -> None:
    """Warns of each of ``names`` that is a blend out of date, or of which that cannot be told: once in the log."""
    for name in dict.fromkeys(names):
        try:
            for warning in outdated_blends(store, [name]):
                _warn_once(str(store), store[name].segments[0].identity, str(warning))
        except KvtoolError as error:
            _warn_once(str(store), "", str(error))


@lru_cache(256)
def _warn_once(store: str, identity: str, warning: str) -> None:
    _log.warning("%s", warning)


def new_record(
    parts: Sequence[Part],
    layout: Layout,
    *,
    variant: str,
    separator: str,
    policy: str,
    recompute: float,
) -> BlendRecord:
    """The record of ``layout``, which ``parts`` were laid out to."""
    recorded = tuple(_recorded(part, n, layout) for n, part in enumerate(parts))
    return BlendRecord(recorded, variant, separator, policy, float(recompute))


def _recorded(part: Part, n: int, layout: Layout) -> BlendedPart:
    if isinstance(part, Text):
        return BlendedPart(text=part.text)
    cached = Cached(part) if isinstance(part, str) else part
    # As they were laid out: by now, the store may have others.
    segments = tuple(
        BlendedSegment(one.identity, one.variant, one.artifact.digest)
        for one in layout.after_prefix
        if one.part == n
    )
    return BlendedPart(cached.name, cached.variant, cached.segment, segments)
