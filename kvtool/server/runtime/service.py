"""The service of one model: its scheduler, memory for caches, and each tenant's documents."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kvtool import limits as bounds
from kvtool.model.model import Model
from kvtool.server.http.metrics import Metrics
from kvtool.server.runtime.cache_manager import CacheManager
from kvtool.server.runtime.cache_memory import CacheMemory
from kvtool.server.runtime.detokenize import TokenTexts
from kvtool.server.runtime.load_policy import LoadOptions, LoadPolicy
from kvtool.server.runtime.request_plan import Planner
from kvtool.server.runtime.scheduler import Scheduler
from kvtool.server.runtime.tenant import Tenant, tenants_of
from kvtool.store.room.quota import Keeper

PREPARING = 8
"""Requests that are prepared at a time: tokenized, and their caches loaded."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a service.

    ``memory`` for caches is in bytes; a request waits for room there for ``wait`` seconds. ``answer_tokens`` is the length of
    answers to requests that do not say it. ``concurrency`` is how many requests are answered at a time.
    """

    memory: int
    answer_tokens: int = 1024
    concurrency: int = 256
    wait: float = 60.0


@dataclass
class Service:
    """Answers for ``tenants``: ``warm_up`` once, then from ``start`` to ``stop``."""

    model: Model
    tenants: dict[str, Tenant]
    limits: Limits
    loading: LoadOptions = field(default_factory=LoadOptions)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.memory = CacheMemory(self.limits.memory)
        self.scheduler = Scheduler(self.model)
        self.caches = CacheManager(self.model, self.scheduler, self.memory, self.metrics, self.limits.wait)
        policy = LoadPolicy(self.caches, self.loading)
        self.planner = Planner(self.model, self.caches, policy, self.limits.answer_tokens)
        self.preparing = ThreadPoolExecutor(PREPARING, "prepare")
        self.started = int(time.time())
        self.waiting = 0
        self.is_draining = False
        self._is_warm = False
        self._keeper = Keeper([tenant.quota for tenant in self.tenants.values() if tenant.quota])

    @cached_property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(self.model.tokenizer)

    def warm_up(self) -> None:
        """Runs the model to measure it, as far as its figures are not known. The second call does nothing.

        It comes before ``start``, since from then on only the model's thread runs the model.
        """
        if not self._is_warm:
            self.scheduler.warm_up()
            self.caches.warm_up(measures_prefill=self.loading.is_measured)
            self._is_warm = True

    def start(self) -> None:
        self.caches.heap.start()
        self.scheduler.start()
        self._keeper.start()

    def stop(self) -> None:
        """Waits until all answers have ended."""
        self._keeper.stop()
        self.scheduler.stop()

    @classmethod
    def over(
        cls,
        root: Path,
        model: Model,
        limits: Limits,
        *,
        names: Collection[str] = (),
        quotas: Mapping[str, int] = {},
        loading: LoadOptions | None = None,
    ) -> Service:
        """The service of the store at ``root`` for everyone, or of a store below it for each of the tenants ``names``.

        ``quotas`` of their stores are in bytes, by name.
        """
        return cls(model, tenants_of(root, names, model, quotas), limits, loading or LoadOptions())

    @property
    def not_ready(self) -> str | None:
        """Why no request should be sent here; None if requests should."""
        if self.is_draining:
            return "stopping"
        if not self.scheduler.is_alive:
            return "the model is not running"
        if self.scheduler.round_seconds > bounds.STUCK_SECONDS:
            return "the model is stuck"
        return None
