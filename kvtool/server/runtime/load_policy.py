"""Whether a cache is loaded, in which variant, or prefilled again: by what each of these took so far.

CacheGen's controller (arXiv 2310.07240): the finest that is there in time, and prefilling where that is as fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached
from kvtool.server.runtime.cache_manager import Caches
from kvtool.server.runtime.prefix_index import Match
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.manifest import AVERAGED, RAW, Document, averaged_name
from kvtool.store.remote import RemoteStore

CLEARLY = 2.0
"""Times sooner that prefilling has to be: measurements are rough, and meanwhile the model is kept from all others."""


@dataclass(frozen=True)
class Loading:
    """How documents' caches are had: ``variant`` of those that name none, or by what was measured where it is None.

    Then ``within`` is how many seconds that may take; a coarser variant is taken for it.
    """

    variant: str | None = None
    within: float | None = None
    use_caches: bool = True


@dataclass(frozen=True)
class Best:
    """To load ``variant``, or to prefill the tokens that it says."""

    variant: str
    is_prefilled: bool = False


class Choosing:
    def __init__(self, caches: Caches, loading: Loading) -> None:
        self.caches, self.loading = caches, loading
        if loading.use_caches and loading.variant is None:
            caches.measure_reading()

    def best(self, chosen: Sequence[Cached], how: BlendOptions, tenant: Tenant) -> Best:
        """What was said, by who runs the server or by who asks; or else what is measured to be best."""
        if self.loading.variant is not None or any(each.variant for each in chosen):
            return Best(self.loading.variant or RAW)
        documents = [tenant.store[each.name] for each in chosen]
        ways = [self._way(variant, documents, tenant) for variant in in_common(documents)]
        if not ways:
            return Best(RAW)
        within, way = self.loading.within, finest_in_time(ways, self.loading.within)
        is_alone = sum(len(document.segments) for document in documents) == 1
        tokens = sum(document.n_tokens for document in documents)
        loading, prefilling = way.seconds, self.caches.reading_seconds(tokens)
        if not is_alone:
            loading += self.caches.reading_seconds(int(how.recompute * tokens))
        elif self.caches.has_prefilled(tenant.name, documents[0].segments[0].identity):
            prefilling = 0.0
        is_exact = way.is_exact and (is_alone or how.recompute == 1)
        if is_better_prefilled(loading, prefilling, is_exact=is_exact, within=within):
            return Best(way.variant, is_prefilled=True)
        return Best(way.variant)

    def _way(self, variant: str, documents: Sequence[Document], tenant: Tenant) -> Way:
        prefix = documents[0].prefix_artifact
        segments = [segment.variants[variant] for document in documents for segment in document.segments]
        parts = [*([prefix] if prefix else []), *segments]
        nbytes = sum(part.nbytes for part in parts)
        # Several are blended, and that is held for nobody else.
        if len(segments) == 1 and self.caches.has(tenant.name, [part.artifact for part in parts]):
            return Way(variant, nbytes)
        store = tenant.store
        fetching = sum(map(store.fetch_seconds, parts)) if isinstance(store, RemoteStore) else 0.0
        return Way(variant, nbytes, fetching, self.caches.speeds.loading(variant).seconds(nbytes))

    def is_sooner_read(self, match: Match, tokens: int, tenant: Tenant) -> bool:
        if self.loading.variant is not None:
            return False
        document = tenant.store[match.document]
        one = replace(document, segments=(document.segments[match.segment],))
        way = self._way(RAW, [one], tenant)
        return is_better_prefilled(
            way.seconds, self.caches.reading_seconds(tokens), is_exact=True, within=None
        )


@dataclass(frozen=True)
class Way:
    """To load one variant: ``nbytes`` of artifacts, with the seconds that are to be expected until they are here, and from
    then on until they are decoded."""

    variant: str
    nbytes: int
    fetching: float = 0.0
    decoding: float = 0.0

    @property
    def seconds(self) -> float:
        return self.fetching + self.decoding

    @property
    def is_exact(self) -> bool:
        return self.variant == RAW


def in_common(documents: Sequence[Document]) -> list[str]:
    """The variants that all have, without those that are only made for blending and stand in for another."""
    found = set.intersection(*(set(document.variants) for document in documents))
    twins = {AVERAGED, *map(averaged_name, found)}
    return sorted(found - twins)


def finest_in_time(ways: Iterable[Way], within: float | None) -> Way:
    """Raw, or the largest; where it has to be there ``within`` seconds, the finest that is, or else the fastest."""
    finest_first = sorted(ways, key=lambda way: (not way.is_exact, -way.nbytes))
    if within is None:
        return finest_first[0]
    in_time = (way for way in finest_first if way.seconds <= within)
    return next(in_time, None) or min(finest_first, key=lambda way: way.seconds)


def is_better_prefilled(loading: float, prefilling: float, *, is_exact: bool, within: float | None) -> bool:
    """Whether prefilling is far sooner done, or in time where what would be loaded is not the same. Both in seconds."""
    return prefilling * CLEARLY < loading or (not is_exact and within is not None and prefilling <= within)
