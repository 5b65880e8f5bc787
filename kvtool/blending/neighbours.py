"""Neighbours: documents of a store after which another is prefilled, for caches made for blending.

``similar`` chooses them as FusionRAG does (arXiv 2601.12904): documents that a question retrieves together are like one
another. Similarity needs no model here: it is the cosine of token counts, weighted by how rare a token is in the store.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice

from kvtool.artifact.load import load_cache
from kvtool.digest import digest
from kvtool.engines import transformers as engine
from kvtool.engines.cache import DocumentCache
from kvtool.errors import ArtifactError, StoreError
from kvtool.model.chat_template import SEPARATOR, document_tokens
from kvtool.model.model import Model
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document

NEIGHBOUR_TOKENS = 200
"""Tokens of each neighbour, at most."""

CANDIDATES = 512
"""Documents that neighbours are chosen from, at most. They bound the time that a run takes to look at a large store."""


@dataclass(frozen=True)
class Neighbour:
    """The first tokens of a document and the gap after them, and the cache of the prefix and of these."""

    document: str
    token_ids: tuple[int, ...]
    cache: DocumentCache


Choice = Callable[[Sequence[int], Mapping[str, Sequence[int]]], Sequence[str]]
"""The names of candidates, the first choice first, for a document's tokens and the candidates' first tokens."""


def random(_: Sequence[int], candidates: Mapping[str, Sequence[int]]) -> Sequence[str]:
    """By the digests of their names, in which order they are given."""
    return list(candidates)


def similar(token_ids: Sequence[int], candidates: Mapping[str, Sequence[int]]) -> Sequence[str]:
    """The most similar first; of equals as ``random`` has them."""
    counts = {name: Counter(ids) for name, ids in candidates.items()}
    holders: defaultdict[int, list[str]] = defaultdict(list)
    for name, count in counts.items():
        for token in count:
            holders[token].append(name)
    rarity = {token: math.log(len(candidates) / len(names)) for token, names in holders.items()}

    def weight(token: int, count: int) -> float:
        return math.log1p(count) * rarity[token]

    cosine = dict.fromkeys(candidates, 0.0)
    for token, times in Counter(token_ids).items():
        for name in holders.get(token, ()):
            cosine[name] += weight(token, times) * weight(token, counts[name][token])
    for name, count in counts.items():
        length = math.sqrt(sum(weight(token, n) ** 2 for token, n in count.items()))
        cosine[name] /= length or 1.0
    return sorted(candidates, key=lambda name: -cosine[name])


def mixed(token_ids: Sequence[int], candidates: Mapping[str, Sequence[int]]) -> Sequence[str]:
    """In turn the most similar of those left, and the next one that ``random`` has."""
    pairs = zip(similar(token_ids, candidates), random(token_ids, candidates), strict=True)
    return list(dict.fromkeys(chain.from_iterable(pairs)))


CHOICES: Mapping[str, Choice] = {"random": random, "similar": similar, "mixed": mixed}


@dataclass
class Neighbours:
    """Documents of ``store`` with the model and prefix of ``like``, each prefilled after it; ``choice`` is one of ``CHOICES``.

    What is chosen depends on the store's documents alone, so that an interrupted run goes on as it began.
    """

    store: LocalStore
    model: Model
    like: Document
    choice: str
    _candidates: dict[str, list[int]] = field(default_factory=dict)
    _loaded: dict[str, Neighbour] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gap = document_tokens(self.model, SEPARATOR)

    def of(self, document: Document, number: int, room: int) -> list[Neighbour]:
        """The first ``number`` that fit in ``room`` tokens with the prefix, in the order of the choice."""
        candidates = {name: ids for name, ids in self._all().items() if name != document.name}
        room -= int(self.like.prefix["tokens"]) + len(self._gap)
        token_ids = self.store.open(document.name).token_ids.tolist()
        order = CHOICES[self.choice](token_ids, candidates)
        chosen: dict[str, Neighbour] = {}
        for name in order:
            if len(chosen) == number:
                break
            if len(candidates[name]) > room:
                continue
            # A broken document is nobody's neighbour. Whoever asks for it gets the error.
            with suppress(StoreError, ArtifactError):
                chosen[name] = self._loaded.get(name) or self._load(name)
        # Those of the document before are often the same.
        self._loaded = chosen
        return list(chosen.values())

    def _all(self) -> dict[str, list[int]]:
        if not self._candidates:
            self._candidates = dict(islice(self._first_tokens(), CANDIDATES))
        return self._candidates

    def _first_tokens(self) -> Iterator[tuple[str, list[int]]]:
        wanted = self.like.model["fingerprint"], self.like.prefix["digest"]
        for name in sorted(self.store, key=lambda name: digest(name.encode())):
            with suppress(StoreError, ArtifactError):
                document = self.store[name]
                if (document.model["fingerprint"], document.prefix["digest"]) == wanted:
                    yield name, self.store.open(name).token_ids[:NEIGHBOUR_TOKENS].tolist()

    def _load(self, name: str) -> Neighbour:
        """Its own cache is right after the prefix, so only the gap is computed."""
        cache = load_cache(self.store.parts(name), self.model)
        ids = self._candidates[name]
        surplus = int(self.like.prefix["tokens"]) + len(ids) - cache.get_seq_length()
        if surplus:
            cache.crop(surplus)
        engine.feed(self.model, self._gap, cache)
        return Neighbour(name, (*ids, *self._gap), cache)
