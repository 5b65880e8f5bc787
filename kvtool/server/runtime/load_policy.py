"""Whether a cache is loaded, in which variant, or prefilled: by what each of these took so far.

CacheGen's controller (arXiv 2310.07240): the finest variant that comes in time, and prefill where that is as fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached
from kvtool.server.runtime.cache_manager import CacheManager
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.manifest import AVERAGED, RAW, Document, averaged_name
from kvtool.store.prefix_index import Match
from kvtool.store.remote import RemoteStore

CLEARLY = 2.0
"""How many times faster prefill must be: measurements are rough, and it keeps the model from all others."""


@dataclass(frozen=True)
class LoadOptions:
    """The operator's options for loading.

    ``variant`` is loaded of documents that name none; where it is None, what was measured decides. Then loading may take
    ``max_load_seconds``, and a coarser variant is taken for it.
    """

    variant: str | None = None
    max_load_seconds: float | None = None
    use_caches: bool = True

    @property
    def is_measured(self) -> bool:
        return self.use_caches and self.variant is None


@dataclass(frozen=True)
class LoadChoice:
    """To load ``variant``, or to prefill its tokens."""

    variant: str
    is_prefilled: bool = False


class LoadPolicy:
    """Decides for each request, by ``options`` and by what ``caches`` has measured."""

    def __init__(self, caches: CacheManager, options: LoadOptions) -> None:
        self.caches, self.options = caches, options

    def choose(
        self, documents: Sequence[Cached], blending: BlendOptions, tenant: Tenant, *, is_moved: bool = False
    ) -> LoadChoice:
        """The variant that the operator or the request names, or else the choice that is best as measured.

        ``is_moved`` where another prefix than theirs stands before the documents, so that a single one is blended too.
        """
        if self.options.variant is not None or any(document.variant for document in documents):
            return LoadChoice(self.options.variant or RAW)
        manifests = [tenant.store[document.name] for document in documents]
        is_alone = not is_moved and sum(len(manifest.segments) for manifest in manifests) == 1
        variants = shared_variants(manifests)
        if not is_alone and not blending.takes_pruned:
            variants = [variant for variant in variants if not is_pruned(variant, manifests)]
        estimates = [self._estimate(variant, manifests, tenant) for variant in variants]
        if not estimates:
            return LoadChoice(RAW)
        max_seconds = self.options.max_load_seconds
        best = finest_within(estimates, max_seconds)
        tokens = sum(manifest.n_tokens for manifest in manifests)
        load, prefill = best.seconds, self.caches.prefill_seconds(tokens)
        if not is_alone:
            load += self.caches.prefill_seconds(int(blending.recompute * tokens))
        elif self.caches.has_prefilled(tenant, manifests[0].segments[0].identity):
            prefill = 0.0
        is_exact = best.is_exact and (is_alone or blending.recompute == 1)
        is_prefilled = should_prefill(load, prefill, is_exact=is_exact, max_load_seconds=max_seconds)
        return LoadChoice(best.variant, is_prefilled)

    def prefers_prefill(self, match: Match, tokens: int, tenant: Tenant) -> bool:
        """Whether the ``tokens`` that ``match`` has of a prompt are prefilled far sooner than loaded."""
        if self.options.variant is not None:
            return False
        manifest = tenant.store[match.document]
        segment = replace(manifest, segments=(manifest.segments[match.segment],))
        load = self._estimate(RAW, [segment], tenant).seconds
        return should_prefill(load, self.caches.prefill_seconds(tokens), is_exact=True, max_load_seconds=None)

    def _estimate(self, variant: str, documents: Sequence[Document], tenant: Tenant) -> LoadEstimate:
        prefix = documents[0].prefix_artifact
        segments = [segment.variants[variant] for document in documents for segment in document.segments]
        parts = [*([prefix] if prefix else []), *segments]
        nbytes = sum(part.nbytes for part in parts)
        # Several segments are blended, and that cache is one request's alone.
        if len(segments) == 1 and self.caches.has_loaded(tenant, [part.artifact for part in parts]):
            return LoadEstimate(variant, nbytes)
        store = tenant.store
        fetch_seconds = sum(map(store.fetch_seconds, parts)) if isinstance(store, RemoteStore) else 0.0
        decode_seconds = self.caches.throughput.load(variant).seconds(nbytes)
        return LoadEstimate(variant, nbytes, fetch_seconds, decode_seconds)


@dataclass(frozen=True)
class LoadEstimate:
    """Bytes of a variant's artifacts, seconds until these are here, and seconds to decode them."""

    variant: str
    nbytes: int
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.fetch_seconds + self.decode_seconds

    @property
    def is_exact(self) -> bool:
        return self.variant == RAW


def shared_variants(documents: Sequence[Document]) -> list[str]:
    """The variants that all documents have, without those that blending alone puts in the place of another."""
    variants = set.intersection(*(set(document.variants) for document in documents))
    twins = {AVERAGED, *map(averaged_name, variants)}
    return sorted(variants - twins)


def is_pruned(variant: str, documents: Sequence[Document]) -> bool:
    """Whether any of the documents has lost tokens in ``variant``."""
    return any(segment.variants[variant].is_pruned for document in documents for segment in document.segments)


def finest_within(estimates: Iterable[LoadEstimate], max_seconds: float | None) -> LoadEstimate:
    """Raw, or the largest variant. Of those that take ``max_seconds`` at most the finest; where none does, the fastest."""
    finest_first = sorted(estimates, key=lambda estimate: (not estimate.is_exact, -estimate.nbytes))
    if max_seconds is None:
        return finest_first[0]
    in_time = (estimate for estimate in finest_first if estimate.seconds <= max_seconds)
    return next(in_time, None) or min(finest_first, key=lambda estimate: estimate.seconds)


def should_prefill(load: float, prefill: float, *, is_exact: bool, max_load_seconds: float | None) -> bool:
    """Whether prefill is far sooner done, or in time where what would be loaded is not exact. All are seconds."""
    is_in_time = max_load_seconds is not None and prefill <= max_load_seconds
    return prefill * CLEARLY < load or (not is_exact and is_in_time)
