"""The scheduler's side: which requests are loaded, from what, and into which blocks."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kvtool.connectors.blend_salt import blend_salt
from kvtool.connectors.lookup import CachedPrefix, Lookup, Lookups
from kvtool.connectors.vllm.engine import applies_adapters_whole, attends_to_loaded_tokens, engine_model
from kvtool.connectors.vllm.metrics import Counts
from kvtool.connectors.vllm.orders import LoadOrder, Orders
from kvtool.connectors.vllm.settings import Settings
from kvtool.errors import KvtoolError, described
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
        self.takes_adapters = applies_adapters_whole(config)
        self._found: dict[str, CachedPrefix | None] = {}
        self._starts: dict[str, int] = {}
        self._loading: dict[str, tuple[CachedPrefix, object]] = {}
        self._orders: list[LoadOrder] = []
        self.lookups: Lookups | None = None
        try:
            model = engine_model(config)
            # Now, while the files are those that the engine loads.
            model.take_fingerprint()
            lookup = Lookup(open_store(settings.store, existing=True), model, settings.variant)
            lookup.follow(START_SECONDS)
            self.lookups = Lookups(lookup)
        except (KvtoolError, OSError) as error:
            _log.error("no cache is loaded: %s", error)

    def matched(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond the first ``computed``, and whether they are loaded between steps.

        None to be asked again later: another request is loading the same cache, whose blocks can then be shared.
        """
        key = request.request_id
        if key not in self._found:
            self._found[key] = self._look_up(request)
        if (found := self._found[key]) is None:
            return 0, False
        # At least one token must be computed, for the logits of the next.
        tokens = min(found.n_tokens, request.num_tokens - 1)
        gained = tokens - computed
        if gained < self.settings.min_tokens or not (self.takes_parts or tokens == request.num_tokens - 1):
            return 0, False
        if self.shares_blocks and self._is_loading(found, request):
            return None, False
        self._starts[key] = computed
        return gained, True

    def allocated(self, request: Any, block_ids: tuple[list[int], ...], tokens: int) -> None:
        """Orders the load of ``tokens`` that ``matched`` has offered, into the blocks that the request got for them."""
        key = request.request_id
        found, start = self._found.get(key), self._starts.pop(key, None)
        if tokens == 0 or found is None or start is None:
            return
        self._orders.append(LoadOrder(key, found, range(start, start + tokens), block_ids))
        self._loading[key] = found, _shared_by(request)
        self.counts.add(hits=1, tokens=tokens)

    def take_orders(self, *, is_idle: bool) -> Orders:
        """The loads that begin in this step."""
        orders, self._orders = self._orders, []
        return Orders(orders, is_idle)

    def loaded(self, request_ids: Collection[str], faults: Collection[str]) -> None:
        """Notes which loads are over, and which failed because of the cache: that is not found again for a while."""
        for key in faults:
            if key in self._loading and self.lookups is not None:
                found, _ = self._loading[key]
                self.lookups.avoid(found)
                for other, kept in self._found.items():
                    if kept is not None and kept.source == found.source:
                        self._found[other] = None
        for key in request_ids:
            self._loading.pop(key, None)

    def finished(self, request_id: str) -> None:
        """Forgets a request. Its load, if it still runs, is over when ``loaded`` says so."""
        self._found.pop(request_id, None)
        self._starts.pop(request_id, None)

    def stop(self, reason: str) -> None:
        """Loads nothing more."""
        if self.lookups is not None:
            _log.warning("no cache is loaded from now on: %s; restart vLLM to load caches again", reason)
        self.lookups = None
        self._found.clear()

    def _look_up(self, request: Any) -> CachedPrefix | None:
        try:
            return self._search(request)
        except Exception as error:
            # Whatever a request brings, the engine goes on.
            _log.warning("nothing is loaded for a request: %s", described(error))
            return None

    def _search(self, request: Any) -> CachedPrefix | None:
        lora = request.lora_request
        if self.lookups is None or (lora and not self.takes_adapters):
            return None
        if (lookup := self.lookups.of(Path(lora.lora_path) if lora else None)) is None:
            return None
        token_ids = plain_tokens(request)
        if (blend := _named_blend(request)) is None:
            return lookup.longest(token_ids)
        found = lookup.named(blend, token_ids)
        if found is None:
            _log.warning(
                "blend %s is not loaded: it is not there, or the prompt does not begin with it", blend
            )
            return None
        # Or the engine's own prefix cache would give its blocks to prompts that do not name it.
        if request.cache_salt != blend_salt(found.identity):
            _log.warning("blend %s is not loaded: cache_salt is not %r", blend, blend_salt(found.identity))
            return None
        return found

    def _is_loading(self, found: CachedPrefix, request: Any) -> bool:
        return any(
            other.source == found.source and shared_by == _shared_by(request)
            for key, (other, shared_by) in self._loading.items()
            if key != request.request_id
        )


def plain_tokens(request: Any) -> Sequence[int]:
    """The first tokens of a prompt whose keys and values depend on tokens alone: not on pictures or embeddings."""
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return []
    ends = [feature.mm_position.offset for feature in request.mm_features or ()]
    if (are_tokens := request.prompt_is_token_ids) is not None and False in are_tokens:
        ends.append(list(are_tokens).index(False))
    return list(request.prompt_token_ids[: min(ends, default=None)])


def _named_blend(request: Any) -> str | None:
    params = request.kv_transfer_params
    own = params.get(PARAMS) if isinstance(params, dict) else None
    blend = own.get("blend") if isinstance(own, dict) else None
    return blend if isinstance(blend, str) else None


def _shared_by(request: Any) -> object:
    """What two requests must have in common for the engine to share their blocks, tokens aside."""
    lora = request.lora_request
    return request.cache_salt, lora and (lora.lora_name, lora.lora_path)
