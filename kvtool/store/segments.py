"""Segments of stored documents: which one is meant, and encoding one of them."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.artifact.write import compressed_content
from kvtool.codecs import CodecError, Inputs, Pipeline
from kvtool.errors import StoreError
from kvtool.store.base import Store
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW, Variant


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

    ``inputs`` are what the pipeline needs beside keys and values. Raises ``KvtoolError`` that names the document and the
    segment.
    """
    for calibration in pipeline.calibrations:
        store.put_calibration(calibration)
    original = store.open(ref.document, ref.variant, ref.segment)
    try:
        return store.put(compressed_content(original, pipeline, inputs))
    except CodecError as error:
        raise cannot_compress(ref, error) from error


def cannot_compress(ref: SegmentRef, error: CodecError) -> StoreError:
    return StoreError(ref.document, f"segment {ref.segment} cannot be compressed: {error}")
