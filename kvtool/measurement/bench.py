"""A store in a temporary folder, in which one context at a time is compressed and measured.

Contexts go the way a user's documents go: through files with headers, whose digests are checked when loading. The user's own
store is only read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtool.artifact.identity import segment_identity
from kvtool.artifact.measure import measure_artifact
from kvtool.artifact.write import prefix_content, raw_content
from kvtool.codecs import KV, Inputs, Pipeline
from kvtool.engines.cache import DocumentCache
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW, Segment, Variant
from kvtool.store.new_document import new_document
from kvtool.store.segments import SegmentRef, encode_segment

NAME = "context"


class Bench:
    """Holds one context at a time. ``prefix_kv`` are the prefix's keys and values, None for an empty prefix.

    ``encrypted_with`` is the id of the key of the store that contexts are from: they are encrypted here too.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        prefix: Prefix,
        prefix_kv: KV | None,
        encrypted_with: str | None = None,
    ) -> None:
        self.store = LocalStore(folder, is_private=True)
        if encrypted_with:
            self.store.encrypt_with(encrypted_with)
        self.model, self.prefix, self.prefix_kv = model, prefix, prefix_kv
        self._measured: dict[frozenset[str], tuple[Inputs, float]] = {}

    @contextmanager
    def holding(self, kv: KV) -> Iterator[None]:
        """Holds ``kv`` as the context, and removes its files at the end."""
        with self.store.writing():
            self._place(kv)
        # Views of a whole segment would keep all of it in memory.
        del kv
        try:
            yield
        finally:
            self._measured.clear()
            self.store.remove(NAME)
            self.store.collect()

    @property
    def raw_nbytes(self) -> int:
        return self.store.size(NAME)

    def encode(self, pipeline: Pipeline, variant: str) -> int:
        """Compresses the context, after measuring what the pipeline needs. Returns the bytes of its file."""
        if existing := self.store[NAME].segments[0].variants.get(variant):
            # An artifact that exists would not be written again, and writing is a part of what is timed.
            self.store.discard(existing)
        inputs, _ = self.measured(pipeline)
        encoded = encode_segment(self.store, SegmentRef(NAME, 0), pipeline, inputs)
        self.store.commit(self.store[NAME].with_variant(0, variant, encoded))
        return encoded.nbytes

    def measured(self, pipeline: Pipeline) -> tuple[Inputs | None, float]:
        """Returns what the pipeline needs to encode the context, and the seconds that measuring it took.

        The model is run once for all pipelines that need the same.
        """
        if not pipeline.needs:
            return None, 0.0
        if pipeline.needs not in self._measured:
            started = time.monotonic()
            inputs = measure_artifact(self.model, self.store.parts(NAME), pipeline.needs)
            self._measured[pipeline.needs] = inputs, time.monotonic() - started
        return self._measured[pipeline.needs]

    def load(self, variant: str = RAW) -> DocumentCache:
        return self.store.load(NAME, self.model, variant)

    def kv(self) -> KV:
        return self.store.read(NAME)

    def _place(self, kv: KV) -> None:
        raw = self.store.put(raw_content(kv, self.model, self.prefix, {"document": NAME}))
        prefix = self._put_prefix()
        identity = segment_identity(self.model.fingerprint, self.prefix.digest, kv.token_ids.tolist())
        segment = Segment(identity, kv.n_tokens, 0, 0, {RAW: raw})
        self.store.commit(new_document(NAME, "", self.model, self.prefix, prefix, (segment,)))

    def _put_prefix(self) -> Variant | None:
        if self.prefix_kv is None:
            return None
        return self.store.put(prefix_content(self.prefix_kv, self.model, self.prefix))
