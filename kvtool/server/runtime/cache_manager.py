"""Caches for prompts: held in memory, loaded, prefilled or blended, as a plan's source says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from kvtool.artifact.load import cache_geometry, load_cache, loaded_nbytes
from kvtool.artifact.read import Artifact
from kvtool.blending.blend import assemble
from kvtool.blending.pruned import joining_nbytes
from kvtool.engines import transformers as engine
from kvtool.engines.cache import ROOM, STEP, DocumentCache
from kvtool.engines.capabilities import is_replaceable, key_rotations, takes_biases
from kvtool.errors import ArtifactError, MismatchError, ModelError, StoreError
from kvtool.model.model import Model
from kvtool.model.prefill_speed import recall
from kvtool.server.http.metrics import Metrics
from kvtool.server.runtime.cache_memory import CacheMemory
from kvtool.server.runtime.cache_sources import Blended, CacheSource, Prefilled, Stored, Uncached
from kvtool.server.runtime.scheduler import PASS_TOKENS, Scheduler
from kvtool.server.runtime.tenant import Tenant
from kvtool.system.malloc_trim import Trimmer
from kvtool.system.throughput import Throughput

SAMPLE_TOKENS = 256
"""Tokens that are prefilled to measure how fast the model does that."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenCache:
    """A cache of the first ``tokens`` of a prompt, ``computed`` of which were computed for this request."""

    cache: DocumentCache
    tokens: int
    computed: int = 0

    @property
    def cached_tokens(self) -> int:
        return self.tokens - self.computed


class CacheManager:
    """The caches of all tenants. A request waits for memory for ``wait`` seconds at most."""

    def __init__(
        self, model: Model, scheduler: Scheduler, memory: CacheMemory, metrics: Metrics, wait: float
    ) -> None:
        self.model, self.scheduler, self.memory, self.metrics = model, scheduler, memory, metrics
        self.wait = wait
        self.throughput = Throughput(recall(model.fingerprint))
        self.heap = Trimmer()
        scheduler.on_pass = self.throughput.prefilled

    def warm_up(self, *, measures_prefill: bool) -> None:
        """Runs the model to measure a token's size, and the speed of prefill unless it is known.

        Also finds what pruned caches need it to do: later, threads that load them must not run it.
        """
        _ = self.token_bytes
        is_replaceable(self.model)
        takes_biases(self.model)
        if measures_prefill and self.throughput.prefill.is_unknown:
            tokens = min(SAMPLE_TOKENS, self.model.context)
            started = time.monotonic()
            _filled(self.model, tokens)
            self.throughput.prefill.took(tokens, time.monotonic() - started)

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of one token in a cache. Runs the model, which ``warm_up`` does ahead of time."""
        layers = _filled(self.model, 1).layers
        return sum(x.numel() * x.element_size() for layer in layers for x in (layer.keys, layer.values))

    def has_loaded(self, tenant: Tenant, digests: Sequence[str]) -> bool:
        return self.memory.has((tenant.name, *digests))

    def has_prefilled(self, tenant: Tenant, identity: str) -> bool:
        return self.memory.has((tenant.name, "prefilled", identity))

    def prefill_seconds(self, tokens: int) -> float:
        """Estimates how long it takes to prefill ``tokens``, after the prompts that came before."""
        return self.throughput.prefill.seconds(self.scheduler.prefill_tokens + tokens)

    @contextmanager
    def opened(self, sources: Sequence[CacheSource], tenant: Tenant) -> Iterator[OpenCache]:
        """Opens the first of ``sources`` that is not broken, which stays in memory within the context.

        Raises ``TooLarge`` and ``Busy`` as ``CacheMemory.holding`` does, and what is wrong with the last source.
        """
        self.metrics.queries.inc()
        try:
            with ExitStack() as stack:
                yield self._first(sources, tenant, stack)
        finally:
            self.heap.freed()

    def _first(self, sources: Sequence[CacheSource], tenant: Tenant, stack: ExitStack) -> OpenCache:
        source, *others = sources
        try:
            stack.enter_context(tenant.store.using(*source.documents))
            cache = stack.enter_context(self._open(source, tenant))
        except (StoreError, ArtifactError, MismatchError, ModelError) as error:
            if not others:
                raise
            _log.warning("a cached beginning was not used: %s", error)
            return self._first(others, tenant, stack)
        tenant.hits.update(source.documents)
        return cache

    def _open(self, source: CacheSource, tenant: Tenant) -> AbstractContextManager[OpenCache]:
        match source:
            case Uncached():
                return self._empty(source)
            case Stored():
                return self._stored(source, tenant)
            case Prefilled():
                return self._prefilled(source, tenant)
            case Blended():
                return self._blended(source)

    @contextmanager
    def _empty(self, source: Uncached) -> Iterator[OpenCache]:
        with self.memory.reserved(source.nbytes, timeout=self.wait):
            yield OpenCache(engine.new_cache(self.model, source.prompt_tokens + ROOM), 0)

    @contextmanager
    def _stored(self, source: Stored, tenant: Tenant) -> Iterator[OpenCache]:
        """Shared by all of the tenant's requests that begin with the same artifacts.

        A pruned cache has no room of its own for what is appended. It grows by ``STEP``, and holds up to ``STEP`` tokens of
        requests that have ended.
        """
        key = (tenant.name, *(artifact.digest for artifact in source.artifacts))
        load = partial(self._load, source.variant, source.artifacts)
        geometry = cache_geometry(source.artifacts)
        private = source.nbytes + (2 * STEP * self.token_bytes if geometry.is_pruned else 0)
        with self._shared(key, loaded_nbytes(geometry), load, private) as cache:
            self.metrics.hits.inc()
            yield OpenCache(cache, source.tokens)

    @contextmanager
    def _prefilled(self, source: Prefilled, tenant: Tenant) -> Iterator[OpenCache]:
        computed = 0

        def compute() -> DocumentCache:
            nonlocal computed
            computed = source.tokens
            return self._prefill(source.token_ids)

        key = (tenant.name, "prefilled", source.identity)
        nbytes = self.token_bytes * (source.tokens + ROOM)
        with self._shared(key, nbytes, compute, source.nbytes) as cache:
            if not computed:
                self.metrics.hits.inc()
            yield OpenCache(cache, source.tokens, computed)

    @contextmanager
    def _blended(self, source: Blended) -> Iterator[OpenCache]:
        """One request's alone: what is recomputed depends on its question.

        Empty, so that all is prefilled, where it is not known how to move the model's keys to another place.
        """
        layout, nbytes = source.layout, self.token_bytes * source.tokens
        is_prefilled = source.blending.recompute < 1 and not self._moves_keys()
        if layout.pruned and source.blending.takes_pruned and not is_prefilled:
            nbytes = joining_nbytes(layout)
        with self.memory.reserved(source.nbytes + nbytes + self.token_bytes * ROOM, timeout=self.wait):
            if is_prefilled:
                prompt_tokens = source.tokens + len(source.question)
                yield OpenCache(engine.new_cache(self.model, prompt_tokens + ROOM), 0)
                return
            with self.metrics.blends.time():
                blend = partial(assemble, layout, self.model, source.blending, [source.question])
                blended = self.scheduler.call(blend).result()
            self.metrics.bytes_read.inc(sum(segment.artifact.nbytes for segment in layout.segments))
            self.metrics.hits.inc()
            yield OpenCache(blended, source.tokens, blended.recomputed)

    def _moves_keys(self) -> bool:
        return self.scheduler.call(partial(key_rotations, self.model)).result() is not None

    def _shared(
        self, key: Hashable, nbytes: int, load: Callable[[], DocumentCache], private: int
    ) -> AbstractContextManager[DocumentCache]:
        return self.memory.holding(key, nbytes, load, private=private, timeout=self.wait)

    def _load(self, variant: str, artifacts: Sequence[Artifact]) -> DocumentCache:
        started = time.monotonic()
        cache = load_cache(artifacts, self.model)
        seconds, nbytes = time.monotonic() - started, sum(artifact.nbytes for artifact in artifacts)
        self.throughput.load(variant).took(nbytes, seconds)
        self.metrics.loads.observe(seconds)
        self.metrics.sources.labels(variant).inc()
        self.metrics.bytes_read.inc(nbytes)
        return cache

    def _prefill(self, token_ids: Sequence[int]) -> DocumentCache:
        self.metrics.sources.labels("prefilled").inc()
        cache = engine.new_cache(self.model, len(token_ids) + ROOM)
        cache.token_ids = torch.tensor(token_ids)
        started = time.monotonic()
        # In passes as large as those of prompts, so that no answer waits longer for this.
        engine.feed(
            self.model,
            token_ids,
            cache,
            step=PASS_TOKENS,
            run=lambda forward: self.scheduler.call(forward).result(),
        )
        self.throughput.prefilled(len(token_ids), time.monotonic() - started)
        return cache


def _filled(model: Model, tokens: int) -> DocumentCache:
    """A cache of any token, ``tokens`` times."""
    cache = engine.new_cache(model, tokens)
    engine.feed(model, [model.text_config.vocab_size // 2] * tokens, cache)
    return cache
