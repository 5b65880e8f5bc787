"""Commits encoded segments: a document's manifest names the variant when its last segment is stored."""

from __future__ import annotations

from kvtool.compression.inputs import compared
from kvtool.compression.plan import Plan, sizes
from kvtool.compression.report import Report
from kvtool.compression.resolve import Job
from kvtool.errors import KvtoolError, StoreError
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document, Variant
from kvtool.store.segments import SegmentRef


class Committer:
    """Takes the outcomes of a plan's segments, in any order, and commits each document that is complete."""

    def __init__(self, store: LocalStore, job: Job, plan: Plan, report: Report) -> None:
        self.store, self.job, self.report = store, job, report
        self._documents = {name: planned.document for name, planned in plan.to_encode.items()}
        self._artifacts = {name: list(planned.artifacts) for name, planned in plan.to_encode.items()}
        self._unlike: set[str] = set()

    def take(self, ref: SegmentRef, outcome: Variant | KvtoolError) -> None:
        """Notes the outcome of one segment. A document of which one segment fails is not committed."""
        self.report.segments_done += 1
        if ref.document not in self._artifacts:
            return
        try:
            if isinstance(outcome, KvtoolError):
                raise outcome
            self._note_fallback(ref, outcome)
            artifacts = self._artifacts[ref.document]
            artifacts[ref.segment] = Variant(outcome.artifact, outcome.nbytes, self.job.record)
            complete = [artifact for artifact in artifacts if artifact is not None]
            if len(complete) == len(artifacts):
                self._commit(ref.document, complete)
                del self._artifacts[ref.document]
        except KvtoolError as error:
            self._artifacts.pop(ref.document)
            self.report.problems.append(error)

    def _note_fallback(self, ref: SegmentRef, artifact: Variant) -> None:
        pipeline = self.job.pipeline
        if pipeline.chooses and self.store.open_artifact(artifact).contents.pipeline != pipeline:
            self.report.fallback_segments.append(ref)
            self._unlike.add(ref.document)

    def _commit(self, name: str, artifacts: list[Variant]) -> None:
        with self.store.changing():
            document = self.store[name]
            if self._sources(document) != self._sources(self._documents[name]):
                raise StoreError(name, "was prefilled again meanwhile", "compress it again")
            for index, artifact in enumerate(artifacts):
                document = document.with_variant(index, self.job.variant, artifact)
            self.store.commit(document)
        self.report.entries[name] = document.state(compared(self.job.variant))
        counted = sizes(self.store, self.job.source, document, artifacts)
        self.report.count(counted)
        self.report.compressed.append(name)
        if name in self._unlike:
            self.report.unlike[name] = counted

    def _sources(self, document: Document) -> list[Variant | None]:
        """The source of each segment's variant."""
        return [segment.variants.get(self.job.source) for segment in document.segments]
