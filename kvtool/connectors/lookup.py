"""Which cache of a store a prompt begins with, for the model that an engine has loaded."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvtool.artifact.read import Artifact
from kvtool.connectors.avoided import Avoided
from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.usable import Usable
from kvtool.model.locate import model_files
from kvtool.store.base import Store
from kvtool.store.manifest import Variant
from kvtool.store.prefix_index import Match, PrefixIndex
from kvtool.system.files import file_state

ADAPTERS_AT_MOST = 32
"""Those used last, of which it is known what a store has for them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedPrefix:
    """The cache of a prompt's first ``n_tokens``, as a store has it.

    ``artifacts`` hold it, prefix first. Their digests cover every byte. So what a store gives for them later is what was looked
    up, model and tokens included, whatever its documents are called by then. ``identity`` is the segment's.
    """

    document: str
    artifacts: tuple[Variant, ...]
    n_tokens: int
    identity: str

    @classmethod
    def of(cls, match: Match) -> CachedPrefix:
        return cls(match.document, match.artifacts, match.tokens, match.identity)

    @property
    def source(self) -> tuple[str, ...]:
        """What is loaded, however much of it."""
        return tuple(variant.artifact for variant in self.artifacts)

    def open(self, store: Store) -> list[Artifact]:
        """The artifacts. Raises ``KvtoolError`` if one is gone or broken."""
        return [store.open_artifact(variant) for variant in self.artifacts]


@dataclass
class Lookup:
    """The caches of ``store`` that ``model`` can use, as ``Usable`` tells. All methods but ``follow`` return at once."""

    store: Store
    model: EngineModel
    variant: str | None = None
    _avoided: Avoided[tuple[str, ...]] = field(default_factory=Avoided, init=False)

    def __post_init__(self) -> None:
        self.index = PrefixIndex(self.store, Usable(self.store, self.model, self.variant), in_background=True)

    def follow(self, seconds: float) -> None:
        """Looks through the store for the first time, for so long at most; goes on in the background."""
        self.index.look_through(seconds)

    def longest(self, token_ids: Sequence[int]) -> CachedPrefix | None:
        """The cache that has the most of a prompt's first tokens."""
        return self._unless_avoided(self.index.longest(token_ids))

    def named(self, document: str, token_ids: Sequence[int]) -> CachedPrefix | None:
        """The cache of a document that a request names, if the prompt begins with all of it: a blend is found by name alone."""
        return self._unless_avoided(self.index.named(document, token_ids))

    def avoid(self, found: CachedPrefix) -> None:
        """Finds it no more for a while: it could not be loaded."""
        self._avoided.add(found.source)

    def _unless_avoided(self, match: Match | None) -> CachedPrefix | None:
        if match is None:
            return None
        found = CachedPrefix.of(match)
        return None if found.source in self._avoided else found


class Lookups:
    """A ``Lookup`` for each adapter that requests name, beside that of the ``base`` model."""

    def __init__(self, base: Lookup) -> None:
        self.base = base
        self._adapters: OrderedDict[Path, tuple[list[Any], Lookup]] = OrderedDict()
        self._changed: set[Path] = set()

    def of(self, adapter: Path | None) -> Lookup | None:
        """The caches of the model with an adapter. Of one that is new, they are found a moment later.

        None for one whose files have changed since it was first seen: the engine may have loaded either.
        """
        if adapter is None:
            return self.base
        state = [file_state(file) for file in model_files(adapter)] if adapter.is_dir() else []
        if adapter not in self._adapters:
            base = self.base
            lookup = Lookup(base.store, base.model.with_adapter(adapter), base.variant)
            self._adapters[adapter] = state, lookup
            if len(self._adapters) > ADAPTERS_AT_MOST:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(adapter)
        seen, lookup = self._adapters[adapter]
        if seen != state and adapter not in self._changed:
            self._changed.add(adapter)
            _log.warning("no cache is loaded for %s: its files have changed since it was first used", adapter)
        return None if adapter in self._changed else lookup

    def avoid(self, found: CachedPrefix) -> None:
        """As ``Lookup.avoid``, for every adapter."""
        for lookup in (self.base, *(lookup for _, lookup in self._adapters.values())):
            lookup.avoid(found)
