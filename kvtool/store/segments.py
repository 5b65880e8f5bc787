"""Segments of stored documents: which one is meant, and encoding one of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kvtool.artifact.collected import read_inputs
from kvtool.artifact.write import compressed_content
from kvtool.codecs import CodecError, Inputs, Pipeline
from kvtool.errors import StoreError
from kvtool.store.base import Store
from kvtool.store.local import LocalStore
from kvtool.store.manifest import INPUTS, RAW, Variant


@dataclass(frozen=True)
class SegmentRef:
    """One segment of a document, and the variant of it that is read."""

    document: str
    segment: int
    variant: str = RAW

    def n_tokens(self, store: Store) -> int:
        return store[self.document].segments[self.segment].n_tokens


def encode_segment(
    store: LocalStore, ref: SegmentRef, pipeline: Pipeline, inputs: Inputs | None = None
) -> Variant:
    """Encodes one segment by ``pipeline`` and stores the artifact, after the calibrations that it names.

    ``inputs`` are what the pipeline needs beside keys and values, by default those that the store holds. Raises ``KvtoolError``
    that names the document and the segment.
    """
    for calibration in pipeline.calibrations:
        store.put_calibration(calibration)
    original = store.open(ref.document, ref.variant, ref.segment)
    if inputs is None:
        inputs = stored_inputs(store, ref, pipeline.needs)
    try:
        return store.put(compressed_content(original, pipeline, inputs))
    except CodecError as error:
        raise cannot_compress(ref, error) from error


def holds_inputs(store: Store, ref: SegmentRef, needs: Collection[str]) -> bool:
    """Whether the store holds all of ``needs``, which are of the raw artifact."""
    variant = store[ref.document].segments[ref.segment].variants.get(INPUTS)
    if variant is None or ref.variant != RAW or not store.holds(variant):
        return False
    return set(needs) <= set(variant.recipe.get("inputs", ()))


def stored_inputs(store: Store, ref: SegmentRef, names: Collection[str]) -> Inputs:
    """Those of ``names`` that the store holds for the segment."""
    variant = store[ref.document].segments[ref.segment].variants.get(INPUTS)
    if not names or variant is None or not holds_inputs(store, ref, ()):
        return {}
    return read_inputs(store.open_artifact(variant), names)


def cannot_compress(ref: SegmentRef, error: CodecError) -> StoreError:
    return StoreError(ref.document, f"segment {ref.segment} cannot be compressed: {error}")
