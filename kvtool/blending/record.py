"""What a stored blend is made of, as its artifact says, and which of its documents are others by now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kvtool.blending.layout import Cached, Layout, Part, Text
from kvtool.errors import ArtifactError, StoreError
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import RAW, Document

SOURCE = "blend"
"""The entry of an artifact's ``source`` that has the record."""

CHANGED, MISSING = "has changed since", "is no longer in the store"


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

    def outdated(self, store: Store) -> dict[str, str]:
        """The documents that are not those that were blended, and why."""
        found: dict[str, str] = {}
        for part in self.parts:
            if part.document is None:
                continue
            if part.document not in store:
                found[part.document] = MISSING
            elif not part.is_of(store[part.document]):
                found[part.document] = CHANGED
        return found


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


def new_record(
    store: Store,
    parts: Sequence[Part],
    layout: Layout,
    *,
    variant: str,
    separator: str,
    policy: str,
    recompute: float,
) -> BlendRecord:
    """The record of ``layout``, which ``parts`` of ``store`` were laid out to."""
    recorded = tuple(_parts(store, parts, layout))
    return BlendRecord(recorded, variant, separator, policy, float(recompute))


def _parts(store: Store, parts: Sequence[Part], layout: Layout) -> Iterator[BlendedPart]:
    placed = iter(layout.after_prefix)
    for part in parts:
        if isinstance(part, Text):
            yield BlendedPart(text=part.text)
            continue
        cached = Cached(part) if isinstance(part, str) else part
        segments = store[cached.name].segments
        chosen = segments if cached.segment is None else [segments[cached.segment]]
        blended = tuple(
            BlendedSegment(segment.identity, one.variant, one.artifact.digest)
            for segment, one in zip(chosen, placed, strict=False)
        )
        yield BlendedPart(cached.name, cached.variant, cached.segment, blended)
