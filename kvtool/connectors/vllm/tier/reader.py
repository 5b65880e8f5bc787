"""What a tier does: it finds blocks of hashes in a store, and loads them. No method but ``drain`` waits for the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import wait
from typing import Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.kv_offload.tiering.base import JobResult

from kvtool.connectors.daemon_pool import DaemonPool
from kvtool.connectors.usable import Usable
from kvtool.connectors.vllm.engine import engine_model
from kvtool.connectors.vllm.load import Load, Target
from kvtool.connectors.vllm.scheduler import START_SECONDS
from kvtool.connectors.vllm.settings import Settings
from kvtool.connectors.vllm.tier.blocks import HashedBlocks, Hashing
from kvtool.connectors.vllm.tier.engine import Engine
from kvtool.connectors.vllm.tier.layout import Memory, layers_of
from kvtool.connectors.vllm.tier.promotion import Promoter, Promotion
from kvtool.connectors.vllm.worker import WARM_UP_SECONDS
from kvtool.connectors.warm_up import warm_up
from kvtool.errors import KvtoolError, UsageError
from kvtool.store.open import open_store
from kvtool.store.remote import RemoteStore

POLL_SECONDS = 0.002
"""From one look at loads that are waited for to the next."""

_log = logging.getLogger(__name__)


class Reader:
    """The caches of a store for the engine that is building a tier of ``spec``. Where they cannot be used, all is a miss.

    Raises ``UsageError`` for ``settings`` that are wrong.
    """

    def __init__(self, spec: Any, view: memoryview, settings: Mapping[str, Any]) -> None:
        if "min_tokens" in settings:
            raise UsageError("secondary_tiers: min_tokens", "a tier is asked for single chunks; leave it out")
        self.settings = Settings.of(settings)
        self.memory = Memory(view)
        self.is_local = True
        self._promotions: list[Promotion] = []
        self._promoter: Promoter | None = None
        try:
            self._promoter = self._open(Engine.calling(spec))
        except KvtoolError as error:
            _log.error("no block is loaded from %s: %s", self.settings.store, error)
            self.memory.release()

    def has(self, key: Any) -> bool:
        return self._promoter is not None and self._promoter.find([key]) != [None]

    def load(self, job: Any) -> None:
        promoter = self._promoter
        nothing = Promotion(job.job_id, missing=list(job.keys))
        self._promotions.append(promoter.start(job) if promoter else nothing)

    def finished(self) -> list[JobResult]:
        """The jobs that are over, each of them once."""
        over = [promotion for promotion in self._promotions if promotion.is_over()]
        self._promotions = [promotion for promotion in self._promotions if promotion not in over]
        for promotion in over:
            for load in promotion.failed():
                self._give_up(load)
        return [promotion.result() for promotion in over]

    def drain(self) -> None:
        while not all(promotion.is_over() for promotion in self._promotions):
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Ends everything. From here on the memory is not touched, and vLLM can free it."""
        promoter, self._promoter = self._promoter, None
        if promoter is not None:
            for promotion in self._promotions:
                promotion.cancel("the engine stops")
            promoter.pool.shutdown(wait=False, cancel_futures=True)
        self.memory.release()

    def _open(self, engine: Engine) -> Promoter:
        store = open_store(self.settings.store, existing=True)
        self.is_local = not isinstance(store, RemoteStore)
        layers: Mapping[int, Any] = layers_of(engine, self.memory)
        sizes = {layer.group: layer.chunk_tokens for layer in layers.values()}
        model = engine_model(engine.config)
        # Now, while the files are those that the engine loads.
        model.take_fingerprint()
        model.provide_embedding()
        function = get_hash_fn_by_name(engine.config.cache_config.prefix_caching_hash_algo)
        hashing = Hashing(function, engine.spec.config.cache.tokens_per_hash)
        blocks = HashedBlocks(store, Usable(store, model, self.settings.variant), hashing)
        pool = DaemonPool(self.settings.threads, "kvtool-tier")
        wait([pool.submit(warm_up, store, self.settings.variant)], WARM_UP_SECONDS)
        blocks.follow(START_SECONDS)
        return Promoter(
            blocks,
            Target(store, layers, engine.config.model_config.dtype),
            [sizes[group] for group in sorted(sizes)],
            self.settings.max_load_seconds,
            pool,
        )

    def _give_up(self, load: Load) -> None:
        if self._promoter is not None:
            self._promoter.avoid(load)
            _log.warning("%s is prefilled: %s", load.order.found.document, load.error)
