"""Which cache of a store a prompt begins with, for the model that an engine has loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvtool.artifact.read import Artifact
from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.usable import Usable
from kvtool.errors import KvtoolError
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import Variant
from kvtool.store.prefix_index import PrefixIndex

AVOIDED_SECONDS = 60.0
"""For which a cache that could not be loaded is not found again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedPrefix:
    """The cache of a prompt's first ``n_tokens``, as a store has it.

    ``artifacts`` hold it, prefix first. Their digests cover every byte. So what a store gives for them later is what was looked
    up, model and tokens included, whatever its documents are called by then.
    """

    document: str
    artifacts: tuple[Variant, ...]
    n_tokens: int

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
    _avoided: dict[tuple[str, ...], float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._usable = Usable(self.store, self.model, self.variant)
        self.index = PrefixIndex(self.store, self._usable, in_background=True)

    def follow(self, seconds: float) -> None:
        """Looks through the store for the first time, for so long at most; goes on in the background."""
        until = time.monotonic() + seconds
        self.index.follow()
        while not self.index.is_complete and time.monotonic() < until:
            time.sleep(0.01)

    def longest(self, token_ids: Sequence[int]) -> CachedPrefix | None:
        """The cache that has the most of a prompt's first tokens."""
        if (match := self.index.longest(token_ids)) is None:
            return None
        found = CachedPrefix(match.document, match.artifacts, match.tokens)
        return None if self._is_avoided(found) else found

    def named(self, document: str, token_ids: Sequence[int]) -> CachedPrefix | None:
        """The cache of a document that a request names, if the prompt begins with all of it: a blend is found by name alone."""
        try:
            entry = self.store[document]
            if len(entry.segments) != 1 or (variant := self._usable(entry, entry.segments[0])) is None:
                return None
            artifacts = entry.artifacts_of(entry.segments[0], variant)
            parts = [headers_of(self.store).open_artifact(artifact) for artifact in artifacts]
            ids = [int(token) for part in parts for token in part.token_ids]
        except KvtoolError as error:
            _log.warning("%s is not loaded: %s", document, error)
            return None
        if list(token_ids[: len(ids)]) != ids:
            _log.warning("%s is not loaded: the prompt's first %d tokens are not its own", document, len(ids))
            return None
        found = CachedPrefix(document, artifacts, len(ids))
        return None if self._is_avoided(found) else found

    def avoid(self, found: CachedPrefix) -> None:
        """Finds it no more for a while: it could not be loaded."""
        self._avoided[found.source] = time.monotonic() + AVOIDED_SECONDS

    def _is_avoided(self, found: CachedPrefix) -> bool:
        return time.monotonic() < self._avoided.get(found.source, 0.0)


class Lookups:
    """A ``Lookup`` for each adapter that requests name, beside that of the ``base`` model."""

    def __init__(self, base: Lookup) -> None:
        self.base = base
        self._with_adapter: dict[Path, Lookup] = {}
        self._lock = threading.Lock()

    def of(self, adapter: Path | None) -> Lookup:
        """The caches of the model with an adapter. Of one that is new, they are found a moment later."""
        if adapter is None:
            return self.base
        with self._lock:
            if adapter not in self._with_adapter:
                base = self.base
                self._with_adapter[adapter] = Lookup(
                    base.store, base.model.with_adapter(adapter), base.variant
                )
            return self._with_adapter[adapter]

    def avoid(self, found: CachedPrefix) -> None:
        """As ``Lookup.avoid``, for every adapter."""
        with self._lock:
            lookups = [self.base, *self._with_adapter.values()]
        for lookup in lookups:
            lookup.avoid(found)
