"""Encodes the segments of a job: in this process, in several, or with the model that their recipe needs."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from kvtool.artifact.identity import compressed_identity
from kvtool.artifact.measure import measure_artifact
from kvtool.codecs import Pipeline
from kvtool.compression.resolve import Job
from kvtool.compression.workers import Outcome, encode_all
from kvtool.errors import KvtoolError
from kvtool.model.model import Model
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Variant
from kvtool.store.segments import SegmentRef, encode_segment


def encode(store: LocalStore, job: Job, refs: Sequence[SegmentRef]) -> Generator[Outcome, None, None]:
    """Yields each of ``refs`` with its artifact, or with why there is none.

    Artifacts of an interrupted run, which no manifest names yet, are not made again.
    """
    remaining: list[SegmentRef] = []
    known = store.known() if refs else {}
    for ref in refs:
        try:
            original = store.open(ref.document, ref.variant, ref.segment)
        except KvtoolError as error:
            yield ref, error
            continue
        if existing := known.get(compressed_identity(original.meta, job.pipeline)):
            yield ref, existing
        else:
            remaining.append(ref)
    if job.pipeline.needs and job.model is not None:
        for ref in remaining:
            yield ref, _encode_with_model(store, ref, job.pipeline, job.model)
    else:
        yield from encode_all(store, remaining, job.pipeline)


def _encode_with_model(
    store: LocalStore, ref: SegmentRef, pipeline: Pipeline, model: Model
) -> Variant | KvtoolError:
    try:
        inputs = measure_artifact(model, store.parts(ref.document, ref.variant, ref.segment), pipeline.needs)
        return encode_segment(store, ref, pipeline, inputs)
    except KvtoolError as error:
        return error
