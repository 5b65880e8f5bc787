"""The worker's side: loads caches into blocks in the background, while the engine computes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from torch import Tensor
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)

from kvtool.connectors.daemon_pool import DaemonPool
from kvtool.connectors.vllm.engine import engine_model
from kvtool.connectors.vllm.layers import Layer, layers_by_index
from kvtool.connectors.vllm.load import Load, Target
from kvtool.connectors.vllm.metrics import Counts
from kvtool.connectors.vllm.orders import Faults, Orders
from kvtool.connectors.vllm.settings import Settings
from kvtool.connectors.warm_up import warm_up
from kvtool.errors import described
from kvtool.store.open import open_store
from kvtool.system.cores import process_cores, use_cores

WARM_UP_SECONDS = 60.0
"""For which the engine's start waits at most until decoders are compiled; later starts find them on disk."""

IDLE_SECONDS = 0.02
"""For which a step that computes nothing waits for a load, so that the engine does not take the threads' time to ask for it."""

_log = logging.getLogger(__name__)


class WorkerSide:
    """Carries out the orders of ``SchedulerSide`` on one GPU, or on the CPU."""

    def __init__(self, config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self.config, self.kv_cache_config, self.settings = config, kv_cache_config, settings
        self.counts = Counts()
        self._layers: Mapping[int, Layer] = {}
        self._loads: dict[str, Load] = {}
        self._faults: set[str] = set()
        self._changed = threading.Condition()
        self._pool = DaemonPool(settings.threads, "kvtool")
        self._cores = process_cores()
        self._target: Target | None = None

    def register(self, kv_caches: Mapping[str, Tensor]) -> None:
        """Takes the engine's blocks. Loads fail, and so are misses, where a layer is not of a kind that can be loaded."""
        try:
            store = open_store(self.settings.store, existing=True)
            self._target = Target(
                store,
                layers_by_index(self.config, self.kv_cache_config, kv_caches),
                self.config.model_config.dtype,
                get_tensor_model_parallel_rank(),
                get_tensor_model_parallel_world_size(),
                is_all=self.config.parallel_config.pipeline_parallel_size == 1,
                threads=self.settings.threads,
            )
            engine_model(self.config).provide_embedding()
            wait([self._submit(partial(warm_up, store, self.settings.variant))], WARM_UP_SECONDS)
        except Exception as error:
            # Whatever it is, the engine starts, and prefills.
            _log.error("no cache is loaded: %s", described(error))

    def start(self, orders: Orders) -> None:
        for order in orders.loads:
            load = Load(order, self.settings.max_load_seconds, self._notify)
            self._loads[order.request_id] = load
            if self._target is None:
                load.cancel("its layers have no place here", is_at_fault=True)
            else:
                load.start(self._target, self._submit)

    def results(self, finished: Collection[str], *, is_idle: bool) -> tuple[set[str], set[str]]:
        """The requests whose loads are over, and those of them that failed. Nothing is written for them any more.

        The loads of requests that are ``finished`` end here: whoever sent them has gone.
        """
        for key in finished:
            if key in self._loads:
                self._loads[key].cancel("its request was aborted")
        if is_idle and self._loads:
            with self._changed:
                self._changed.wait_for(self._is_any_over, IDLE_SECONDS)
        for load in self._loads.values():
            load.expire()
        over = {key: load for key, load in self._loads.items() if load.is_over}
        failed = set()
        for key, load in over.items():
            del self._loads[key]
            if load.error is None:
                self.counts.add(loads=1, bytes=load.nbytes, seconds=load.seconds)
                continue
            failed.add(key)
            load.give_up(self._pool)
            if load.is_at_fault:
                self._faults.add(key)
            if key not in finished:
                self.counts.add(failures=1)
                _log.warning("%s is prefilled: %s", load.order.found.document, load.error)
        return set(over), failed

    def take_faults(self) -> Faults | None:
        """Requests whose load failed because of the cache, since the last call."""
        faults, self._faults = self._faults, set()
        return Faults(faults) if faults else None

    def close(self) -> None:
        for load in self._loads.values():
            load.cancel("the engine stops")
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, call: Callable[[], object]) -> Future[object]:
        """Has a thread call something, on any of the process's cores: vLLM on a CPU binds the thread that made it to one."""

        def run() -> object:
            use_cores(self._cores)
            return call()

        return self._pool.submit(run)

    def _is_any_over(self) -> bool:
        return any(load.is_over for load in self._loads.values())

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
