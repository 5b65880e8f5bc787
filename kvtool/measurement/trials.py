"""Trials of pipelines on the first tokens of a few segments: bits per value, and KL.

A trial maps a pipeline to a number. What it is measured on is read once and then held.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from kvtool.artifact.measure import measure_artifact
from kvtool.codecs import KV, Blob, CodecError, Geometry, Inputs, LayerKV, Pipeline, encode
from kvtool.codecs.spec import BY_TOKEN
from kvtool.errors import UsageError
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context, first_tokens, text_contexts
from kvtool.measurement.distortion import distortion
from kvtool.measurement.reference import logits_over, measure_reference
from kvtool.measurement.scope import Scope
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.segments import SegmentRef, cannot_compress, holds_inputs, stored_inputs

SEGMENTS = 4
"""Segments of a trial."""

START = 2048
"""Tokens at the start of each segment whose size is measured, at most. The rest costs as much for each token. With 1,024 of
1,200 tokens a size came out 5 % too small."""

VARIANT = "trial"

Trial: TypeAlias = Callable[[Pipeline], float]


def sample_segments(store: Store, names: Sequence[str]) -> list[SegmentRef]:
    """Up to four segments that have tokens, spread evenly over all of ``names``."""
    refs = [
        SegmentRef(name, index)
        for name in names
        for index, segment in enumerate(store[name].segments)
        if segment.n_tokens
    ]
    count = min(SEGMENTS, len(refs))
    return [refs[(2 * n + 1) * len(refs) // (2 * count)] for n in range(count)]


class Starts:
    """The first tokens of the segments ``refs``, and what pipelines need of them: read and measured once, and then held.

    ``needs`` are those of all pipelines; ``model`` measures what the store does not hold.
    """

    def __init__(
        self, store: Store, refs: Sequence[SegmentRef], model: Model | None, needs: Collection[str]
    ) -> None:
        self.store, self.refs, self.model, self.needs = store, refs, model, needs
        self._held: dict[SegmentRef, tuple[KV, Inputs]] = {}

    def encoded(self, pipeline: Pipeline) -> Iterator[tuple[KV, Blob]]:
        """Each start, and how ``pipeline`` encodes it.

        Raises ``KvtoolError``, naming the document and the segment, for one that cannot be encoded.
        """
        for ref in self.refs:
            if ref not in self._held:
                self._held[ref] = _start(self.store, ref, self.needs, self.model)
            kv, inputs = self._held[ref]
            try:
                yield kv, encode(kv, pipeline, inputs=inputs)
            except CodecError as error:
                raise cannot_compress(ref, error) from error


def bits_trial(starts: Starts) -> Trial:
    """Measures bits per value: 8 times all bytes, with headers, divided by the number of keys and values."""

    def measure(pipeline: Pipeline) -> float:
        nbytes = elements = 0
        for kv, blob in starts.encoded(pipeline):
            nbytes += blob.nbytes
            elements += kv.n_elements
        return 8 * nbytes / max(elements, 1)

    return measure


def resident_trial(starts: Starts) -> Trial:
    """Measures the memory of loaded caches, as a share of that of the raw ones."""

    def measure(pipeline: Pipeline) -> float:
        # How what stays is coded makes no difference once it is loaded.
        kept = Pipeline(prune=pipeline.prune)
        loaded = raw = 0
        for kv, blob in starts.encoded(kept):
            loaded += Geometry.from_json(blob.metadata["geometry"]).cache_nbytes
            raw += Geometry.of(kv).cache_nbytes
        return loaded / max(raw, 1)

    return measure


@contextmanager
def kl_trial(store: Store, refs: Sequence[SegmentRef], model: Model) -> Iterator[Trial]:
    """Measures the mean KL in nats per token, as ``kvtool eval`` defines it.

    Raises ``UsageError`` where no segment is long enough.
    """
    contexts, _ = text_contexts(store, refs, Scope(metrics=("kl",)))
    if not contexts:
        reason = "no segment is long enough to measure KL on"
        raise UsageError("--max-kl", reason, "prefill longer documents, or use --ratio")
    with ExitStack() as stack:
        references = [
            stack.enter_context(_holding(store, context, context.segment, model))
            for context in contexts
            if context.segment is not None
        ]

        def measure(pipeline: Pipeline) -> float:
            kl = [value for reference in references for value in reference.kl(pipeline)]
            return sum(kl) / len(kl)

        yield measure


@dataclass(frozen=True)
class _Reference:
    """A context on a bench of its own, and the logits [S, V] over its raw cache."""

    bench: Bench
    context: Context
    logits: Tensor

    def kl(self, pipeline: Pipeline) -> list[float]:
        """KL at each token that is predicted."""
        self.bench.encode(pipeline, VARIANT)
        restored = logits_over(self.bench, self.bench.load(VARIANT), self.context)
        return distortion(self.logits, restored, self.context.targets).kl


@contextmanager
def _holding(store: Store, context: Context, ref: SegmentRef, model: Model) -> Iterator[_Reference]:
    with tempfile.TemporaryDirectory(prefix="kvtool-") as folder:
        *before, _ = store.parts(ref.document, ref.variant, ref.segment)
        prefix = store.prefix(ref.document, model)
        prefix_kv = before[0].kv() if before else None
        bench = Bench(Path(folder), model, prefix, prefix_kv, store.encrypted_with)
        with bench.holding(first_tokens(store, ref, len(context.token_ids))):
            logits = measure_reference(bench, context).logits
            assert logits is not None
            yield _Reference(bench, context, logits)


def _start(store: Store, ref: SegmentRef, needs: Collection[str], model: Model | None) -> tuple[KV, Inputs]:
    """A segment's first tokens, and the inputs that are needed of them, measured over all of the segment."""
    inputs = stored_inputs(store, ref, needs) if holds_inputs(store, ref, needs) else {}
    if needs and not inputs and model is not None:
        inputs = measure_artifact(model, store.parts(ref.document, ref.variant, ref.segment), needs)
    cut = {
        name: [tensor[..., :START].clone() for tensor in tensors] if name in BY_TOKEN else tensors
        for name, tensors in inputs.items()
    }
    kv = first_tokens(store, ref, START)
    # Views would keep all of a long segment in memory.
    layers = tuple(LayerKV(x.keys.clone(), x.values.clone(), x.positions) for x in kv.layers)
    return replace(kv, layers=layers), cut
