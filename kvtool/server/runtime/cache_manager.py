"""The caches that prompts begin with: held in memory, or else loaded, prefilled again or blended."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.blending.blend import BlendOptions, assemble
from kvtool.blending.layout import Layout
from kvtool.engines import transformers as engine
from kvtool.engines.cache import ROOM, DocumentCache
from kvtool.model.model import Model
from kvtool.model.prefill_speed import recall
from kvtool.server.http.metrics import Metrics
from kvtool.server.runtime.cache_memory import Memory
from kvtool.server.runtime.scheduler import PASS_TOKENS, Scheduler
from kvtool.system.malloc_trim import Trimmer
from kvtool.system.speeds import Speeds

SAMPLE_TOKENS = 256
"""That are read to find out how fast the model reads."""


class Caches:
    """Each method gives a cache that stays within its context, and room for ``own`` bytes beside it.

    A wait for room is at most ``wait`` seconds. All raise as ``Memory.holding`` does.
    """

    def __init__(
        self, model: Model, scheduler: Scheduler, memory: Memory, metrics: Metrics, wait: float
    ) -> None:
        self.model, self.scheduler, self.memory, self.metrics = model, scheduler, memory, metrics
        self.wait = wait
        self.speeds = Speeds(recall(model.fingerprint))
        self.heap = Trimmer()
        self.token_bytes = _bytes_of_a_token(model)
        scheduler.on_read = self.speeds.read

    def measure_reading(self) -> None:
        """Before the first request, unless it is known how fast the model reads."""
        if self.speeds.reading.is_unknown:
            tokens = min(SAMPLE_TOKENS, self.model.context)
            started = time.monotonic()
            _filled(self.model, tokens)
            self.speeds.reading.took(tokens, time.monotonic() - started)

    def has(self, owner: str, digests: Sequence[str]) -> bool:
        """Whether what ``loaded`` would give of artifacts is there already."""
        return self.memory.has((owner, *digests))

    def has_prefilled(self, owner: str, identity: str) -> bool:
        return self.memory.has((owner, "prefilled", identity))

    def reading_seconds(self, tokens: int) -> float:
        """To prefill as many, behind the prompts that came before."""
        return self.speeds.reading.seconds(self.scheduler.unread + tokens)

    @contextmanager
    def empty(self, tokens: int, own: int) -> Iterator[DocumentCache]:
        with self._reserved(own):
            yield engine.new_cache(self.model, tokens + ROOM)

    @contextmanager
    def loaded(
        self, owner: str, variant: str, parts: Sequence[Artifact], own: int
    ) -> Iterator[DocumentCache]:
        """What all requests of ``owner`` share that begin with ``parts``."""
        tokens = sum(len(part.token_ids) for part in parts)
        load = partial(self._load, variant, parts)
        with self._held((owner, *(part.digest for part in parts)), tokens, load, own) as cache:
            self.metrics.hits.inc()
            yield cache

    @contextmanager
    def prefilled(
        self, owner: str, identity: str, token_ids: Sequence[int], own: int
    ) -> Iterator[tuple[DocumentCache, bool]]:
        """The same of a segment, computed anew; and whether it was for this request."""
        computed = False

        def compute() -> DocumentCache:
            nonlocal computed
            computed = True
            return self._prefill(token_ids)

        with self._held((owner, "prefilled", identity), len(token_ids), compute, own) as cache:
            if not computed:
                self.metrics.hits.inc()
            yield cache, computed

    @contextmanager
    def blended(
        self, layout: Layout, how: BlendOptions, behind: Sequence[int], own: int
    ) -> Iterator[DocumentCache]:
        """One request's alone: what is recomputed depends on the question."""
        with self._reserved(own + self.token_bytes * (len(layout.token_ids) + ROOM)):
            with self.metrics.blends.time():
                blending = self.scheduler.call(lambda: assemble(layout, self.model, how, [behind]))
                blended = blending.result()
            self.metrics.bytes_read.inc(sum(segment.artifact.nbytes for segment in layout.segments))
            self.metrics.hits.inc()
            yield blended

    @contextmanager
    def _reserved(self, nbytes: int) -> Iterator[None]:
        try:
            with self.memory.reserved(nbytes, timeout=self.wait):
                yield
        finally:
            self.heap.freed()

    @contextmanager
    def _held(
        self, key: Hashable, tokens: int, load: Callable[[], DocumentCache], own: int
    ) -> Iterator[DocumentCache]:
        nbytes = self.token_bytes * (tokens + ROOM)
        try:
            with self.memory.holding(key, nbytes, load, own=own, timeout=self.wait) as cache:
                yield cache
        finally:
            self.heap.freed()

    def _load(self, variant: str, parts: Sequence[Artifact]) -> DocumentCache:
        started = time.monotonic()
        cache = load_cache(parts, self.model)
        seconds, nbytes = time.monotonic() - started, sum(part.nbytes for part in parts)
        self.speeds.loading(variant).took(nbytes, seconds)
        self.metrics.loads.observe(seconds)
        self.metrics.ways.labels(variant).inc()
        self.metrics.bytes_read.inc(nbytes)
        return cache

    def _prefill(self, token_ids: Sequence[int]) -> DocumentCache:
        self.metrics.ways.labels("prefilled").inc()
        cache = engine.new_cache(self.model, len(token_ids) + ROOM)
        cache.token_ids = torch.tensor(token_ids)
        started = time.monotonic()
        # As many at a time as of prompts, so that nobody waits longer for this.
        engine.feed(
            self.model,
            token_ids,
            cache,
            step=PASS_TOKENS,
            run=lambda forward: self.scheduler.call(forward).result(),
        )
        self.speeds.read(len(token_ids), time.monotonic() - started)
        return cache


def _bytes_of_a_token(model: Model) -> int:
    """That a cache takes: found by caching one."""
    layers = _filled(model, 1).layers
    return sum(x.numel() * x.element_size() for layer in layers for x in (layer.keys, layer.values))


def _filled(model: Model, tokens: int) -> DocumentCache:
    """With any token, as often."""
    cache = engine.new_cache(model, tokens)
    engine.feed(model, [model.text_config.vocab_size // 2] * tokens, cache)
    return cache
