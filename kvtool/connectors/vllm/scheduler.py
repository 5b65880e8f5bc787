"""The scheduler's side: which requests are loaded, from what, and into which blocks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kvtool.connectors.lookup import CachedPrefix, Lookup, Lookups
from kvtool.connectors.vllm.engine import attends_to_loaded_tokens, engine_model
from kvtool.connectors.vllm.metrics import Counts
from kvtool.connectors.vllm.orders import LoadOrder, Orders
from kvtool.connectors.vllm.settings import Settings
from kvtool.errors import KvtoolError
from kvtool.store.open import open_store

START_SECONDS = 10.0
"""For which the engine's start waits for the store to be looked through."""

PARAMS = "kvtool"
"""The key of a request's ``kv_transfer_params`` under which it names a blend."""

_log = logging.getLogger(__name__)


class SchedulerSide:
    """Matches requests against the store. Lives in the scheduler's process, and never waits for a store.

    A cache that cannot be used is a miss: the engine prefills.
    """

    def __init__(self, config: Any, settings: Settings) -> None:
        self.settings = settings
        self.counts = Counts()
        self.shares_blocks = bool(config.cache_config.enable_prefix_caching)
        self.takes_parts = attends_to_loaded_tokens(config)
        self._found: dict[str, CachedPrefix] = {}
        self._loading: dict[str, CachedPrefix] = {}
        self._orders: list[LoadOrder] = []
        self.lookups: Lookups | None = None
        try:
            lookup = Lookup(open_store(settings.store, existing=True), engine_model(config), settings.variant)
            lookup.follow(START_SECONDS)
            self.lookups = Lookups(lookup)
        except KvtoolError as error:
            _log.error("no cache is loaded: %s", error)

    def matched(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond the first ``computed``, and whether they are loaded between steps.

        None to be asked again later: another request is loading the same cache, whose blocks can then be shared.
        """
        if (found := self._find(request)) is None:
            return 0, False
        # At least one token must be computed, for the logits of the next.
        tokens = min(found.n_tokens, request.num_tokens - 1)
        gained = tokens - computed
        if gained < self.settings.min_tokens or not (self.takes_parts or tokens == request.num_tokens - 1):
            return 0, False
        if self.shares_blocks and self._is_loading(found, request.request_id):
            return None, False
        return gained, True

    def allocated(self, request: Any, block_ids: tuple[list[int], ...], tokens: int) -> None:
        """Orders the load of ``tokens`` that ``matched`` has named, into the blocks that the request got for them."""
        if tokens == 0 or (found := self._found.get(request.request_id)) is None:
            return
        stop = min(found.n_tokens, request.num_tokens - 1)
        order = LoadOrder(request.request_id, found, range(stop - tokens, stop), block_ids)
        self._loading[request.request_id] = found
        self._orders.append(order)
        self.counts.add(hits=1, tokens=tokens)

    def take_orders(self, *, is_idle: bool) -> Orders:
        """The loads that begin in this step."""
        orders, self._orders = self._orders, []
        return Orders(orders, is_idle)

    def loaded(self, request_ids: set[str], failed: set[str]) -> None:
        """Notes which loads are over, and which of them failed."""
        for request_id in request_ids | failed:
            found = self._loading.pop(request_id, None)
            if found is not None and request_id in failed and self.lookups is not None:
                self.lookups.avoid(found)
                self._found = {key: kept for key, kept in self._found.items() if kept.source != found.source}

    def finished(self, request_id: str) -> None:
        self._found.pop(request_id, None)

    def _find(self, request: Any) -> CachedPrefix | None:
        if request.request_id not in self._found:
            found = self._look_up(request)
            if found is None:
                return None
            self._found[request.request_id] = found
        return self._found[request.request_id]

    def _look_up(self, request: Any) -> CachedPrefix | None:
        if self.lookups is None or request.prompt_token_ids is None:
            return None
        lora = request.lora_request
        try:
            lookup = self.lookups.of(Path(lora.lora_path) if lora else None)
            # What pictures turn into is in no store.
            end = min((feature.mm_position.offset for feature in request.mm_features or ()), default=None)
            token_ids = request.prompt_token_ids[:end]
            if blend := ((request.kv_transfer_params or {}).get(PARAMS) or {}).get("blend"):
                return lookup.named(str(blend), token_ids) if _is_apart(request, blend) else None
            return lookup.longest(token_ids)
        except KvtoolError as error:
            _log.warning("nothing is loaded for a request: %s", error)
            return None

    def _is_loading(self, found: CachedPrefix, request_id: str) -> bool:
        return any(other.source == found.source for key, other in self._loading.items() if key != request_id)


def _is_apart(request: Any, blend: object) -> bool:
    """Whether the engine's own prefix cache keeps the blocks of a request's blend from prompts that do not name it."""
    if request.cache_salt:
        return True
    _log.warning(
        "blend %s is not loaded: the request has no cache_salt, and other prompts would get its blocks", blend
    )
    return False
