"""What serves: a model, its scheduler, memory for caches, and each tenant's documents."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kvtool import limits as bounds
from kvtool.model.model import Model
from kvtool.server.cached_contents.worker import Filling
from kvtool.server.http.metrics import Metrics
from kvtool.server.runtime.cache_manager import Caches
from kvtool.server.runtime.cache_memory import Memory
from kvtool.server.runtime.load_policy import Choosing, Loading
from kvtool.server.runtime.request_plan import Prompting
from kvtool.server.runtime.scheduler import Scheduler
from kvtool.server.runtime.tenant import Tenant, tenants_of

PREPARING = 8
"""Requests that are prepared at a time: tokenized, and their caches loaded."""


@dataclass(frozen=True)
class Limits:
    """``memory`` is in bytes; ``wait`` is how long a request waits for room there, in seconds.

    ``answer_tokens`` are those of an answer to a request that does not say how many it wants.
    """

    memory: int
    answer_tokens: int = 1024
    concurrency: int = 256
    wait: float = 60.0


@dataclass
class Serving:
    model: Model
    tenants: dict[str, Tenant]
    limits: Limits
    loading: Loading = field(default_factory=Loading)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.memory = Memory(self.limits.memory)
        self.scheduler = Scheduler(self.model)
        self.caches = Caches(self.model, self.scheduler, self.memory, self.metrics, self.limits.wait)
        choosing = Choosing(self.caches, self.loading)
        self.prompting = Prompting(self.model, self.caches, choosing, self.limits.answer_tokens)
        self.preparing = ThreadPoolExecutor(PREPARING, "prepare")
        self.started = int(time.time())
        self.waiting = 0
        self.is_draining = False
        self.filling = [
            Filling(tenant.contents, self.model, self.scheduler, self.memory, self.caches.token_bytes)
            for tenant in self.tenants.values()
        ]

    def start(self) -> None:
        self.caches.heap.start()
        self.scheduler.start()
        for filling in self.filling:
            filling.start()

    def stop(self) -> None:
        """Waits for the answers that are on their way."""
        for filling in self.filling:
            filling.stop()
        self.scheduler.stop()

    @classmethod
    def over(
        cls,
        root: Path,
        model: Model,
        limits: Limits,
        *,
        names: Collection[str] = (),
        loading: Loading | None = None,
    ) -> Serving:
        """The store at ``root`` for everyone, or for each of the tenants ``names`` one of their own below it."""
        return cls(model, tenants_of(root, names, model), limits, loading or Loading())

    @property
    def not_ready(self) -> str | None:
        """Why no request should be sent here, if none should."""
        if self.is_draining:
            return "stopping"
        if not self.scheduler.is_alive:
            return "the model is not running"
        if self.scheduler.round_seconds > bounds.STUCK_SECONDS:
            return "the model is stuck"
        return None
