"""Encodes the segments of a job: in this process, in several, or with the model that their recipe needs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from kvtool.artifact.identity import compressed_identity
from kvtool.artifact.measure import measure_artifact
from kvtool.codecs import Pipeline
from kvtool.compression.resolve import Job
from kvtool.compression.workers import Outcome, encode_all
from kvtool.counts import counted
from kvtool.engines.stage_inputs import measuring_cost
from kvtool.errors import KvtoolError
from kvtool.model.model import Model
from kvtool.model.prefill_speed import time_needed
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Variant
from kvtool.store.segments import SegmentRef, encode_segment, holds_inputs


def encode(
    store: LocalStore, job: Job, refs: Sequence[SegmentRef], say: Callable[[str], None]
) -> Generator[Outcome, None, None]:
    """Yields each of ``refs`` with its artifact, or with why there is none.

    Artifacts of an interrupted run, which no manifest names yet, are not made again. ``say`` gets a line if
    the model has to be run.
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
    measured = remaining
    if job.pipeline.needs and job.model is not None:
        holds = {ref: holds_inputs(store, ref, job.pipeline.needs) for ref in remaining}
        measured, unmeasured = ([ref for ref in remaining if holds[ref] is held] for held in (True, False))
        if unmeasured:
            say(_cost(store, unmeasured, job.pipeline, job.model))
        for ref in unmeasured:
            yield ref, _encode_with_model(store, ref, job.pipeline, job.model)
    yield from encode_all(store, measured, job.pipeline)


def _cost(store: LocalStore, refs: Sequence[SegmentRef], pipeline: Pipeline, model: Model) -> str:
    """What will be measured, and how long that takes, from how fast the model prefilled on this machine."""
    tokens = sum(ref.n_tokens(store) for ref in refs)
    names = ", ".join(sorted(pipeline.needs))
    duration = time_needed(model.fingerprint, tokens * measuring_cost(pipeline.needs))
    return f"measuring {names} of {counted(tokens, 'token')}{duration}; prefill --collect keeps it for other recipes"


def _encode_with_model(
    store: LocalStore, ref: SegmentRef, pipeline: Pipeline, model: Model
) -> Variant | KvtoolError:
    try:
        inputs = measure_artifact(model, store.parts(ref.document, ref.variant, ref.segment), pipeline.needs)
        return encode_segment(store, ref, pipeline, inputs)
    except KvtoolError as error:
        return error
