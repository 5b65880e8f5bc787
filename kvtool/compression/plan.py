"""Plans a job: which segments have to be encoded, which documents have the variant already, which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvtool.codecs import Calibration, CodecError
from kvtool.compression.inputs import compared
from kvtool.compression.resolve import Job
from kvtool.errors import KvtoolError, MismatchError, StoreError
from kvtool.store.base import Store
from kvtool.store.manifest import Document, Variant
from kvtool.store.segments import SegmentRef, cannot_compress


@dataclass(frozen=True)
class Sizes:
    """Segments of a document, bytes of their source and of the variant, and the number of keys and values."""

    segments: int
    raw_nbytes: int
    nbytes: int
    n_elements: int

    @property
    def bits_per_value(self) -> float:
        return 8 * self.nbytes / self.n_elements if self.n_elements else 0.0


@dataclass(frozen=True)
class DocumentPlan:
    """A document, and for each of its segments the variant's artifact, None where it has to be encoded."""

    document: Document
    artifacts: tuple[Variant | None, ...]


@dataclass(frozen=True)
class Plan:
    """The documents to encode, and those with the variant, by name; and why others are refused.

    ``entries`` are the states of the entries of those with the variant (``Document.state``).
    """

    to_encode: Mapping[str, DocumentPlan]
    unchanged: Mapping[str, Sizes]
    refused: Sequence[KvtoolError]
    entries: Mapping[str, str]

    def segments(self, source: str) -> list[SegmentRef]:
        """The segments to encode, from the variant ``source``."""
        return [
            SegmentRef(name, index, source)
            for name, document in self.to_encode.items()
            for index, artifact in enumerate(document.artifacts)
            if artifact is None
        ]

    @property
    def segments_total(self) -> int:
        incomplete = sum(len(document.artifacts) for document in self.to_encode.values())
        return incomplete + sum(sizes.segments for sizes in self.unchanged.values())

    @property
    def segments_done(self) -> int:
        return self.segments_total - sum(
            document.artifacts.count(None) for document in self.to_encode.values()
        )


def plan(store: Store, job: Job, names: Iterable[str], replace: bool = False) -> Plan:
    """Looks at each of ``names``. A variant that was made otherwise is refused unless ``replace``."""
    to_encode: dict[str, DocumentPlan] = {}
    unchanged: dict[str, Sizes] = {}
    refused: list[KvtoolError] = []
    entries: dict[str, str] = {}
    for name in names:
        try:
            document = _plan_document(store, job, store[name], replace)
            if all(document.artifacts):
                unchanged[name] = sizes(store, job.source, document.document, document.artifacts)
                entries[name] = document.document.state(compared(job.variant))
            else:
                to_encode[name] = document
        except KvtoolError as error:
            refused.append(error)
    return Plan(to_encode, unchanged, refused, entries)


def sizes(store: Store, source: str, document: Document, artifacts: Sequence[Variant | None]) -> Sizes:
    """The sizes of a document whose segments have ``artifacts``, made from the variant ``source``."""
    originals = [store.open(document.name, source, index) for index in range(len(artifacts))]
    return Sizes(
        len(artifacts),
        sum(original.nbytes for original in originals),
        sum(artifact.nbytes for artifact in artifacts if artifact),
        sum(original.contents.geometry.n_elements for original in originals),
    )


def _plan_document(store: Store, job: Job, document: Document, replace: bool) -> DocumentPlan:
    for calibration in job.pipeline.calibrations:
        _refuse_other_model(document, calibration)
    artifacts: list[Variant | None] = []
    for index, segment in enumerate(document.segments):
        existing = segment.variants.get(job.variant)
        if existing and existing.recipe != job.record and not replace:
            reason = f"has a variant {job.variant!r} made otherwise"
            raise StoreError(document.name, reason, "give this one another --name, or --replace it")
        is_made = existing is not None and existing.recipe == job.record and store.holds(existing)
        artifacts.append(existing if is_made else None)
        if not is_made:
            _refuse_budget(store, job, SegmentRef(document.name, index, job.source))
    return DocumentPlan(document, tuple(artifacts))


def _refuse_budget(store: Store, job: Job, ref: SegmentRef) -> None:
    if job.pipeline.prune is None:
        return
    geometry = store.open(ref.document, ref.variant, ref.segment).contents.geometry
    try:
        job.pipeline.prune.refuse(geometry)
    except CodecError as error:
        raise cannot_compress(ref, error) from error


def _refuse_other_model(document: Document, calibration: Calibration) -> None:
    fingerprint = document.model["fingerprint"]
    if calibration.model != fingerprint:
        model = f"model {calibration.model[:12]}…" if calibration.model else "no model that it names"
        raise MismatchError(
            document.name,
            f"was prefilled with {document.model['name']} (model {fingerprint[:12]}…), calibration "
            f"{calibration.digest} is of {model}",
            "take another, or run kvtool calibrate with the documents' model",
        )
