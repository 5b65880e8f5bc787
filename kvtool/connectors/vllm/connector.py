"""The class that vLLM loads: its interface, carried out by ``SchedulerSide`` in one process and ``WorkerSide`` in others.

vLLM 0.32, ``KVConnectorBase_V1``. Caches are loaded between the engine's steps ("asynchronously" there), so that other requests
go on, and one that cannot be loaded is reported as failed: its tokens are prefilled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from kvtool.connectors.vllm.metrics import KvtoolPromMetrics, KvtoolStats
from kvtool.connectors.vllm.orders import Faults, Orders
from kvtool.connectors.vllm.settings import Settings
from kvtool.connectors.vllm.unsuited import refuse_unsuited

if TYPE_CHECKING:
    from kvtool.connectors.vllm.scheduler import SchedulerSide
    from kvtool.connectors.vllm.worker import WorkerSide


class KvtoolConnector(KVConnectorBase_V1, SupportsHMA):
    """Loads the documents of a kvtool store."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        refuse_unsuited(vllm_config)
        settings = Settings.of(self._kv_transfer_config.kv_connector_extra_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        # Here, not above: vLLM imports this class before its workers start, and their start on a CPU trips over numba's modules.
        if role == KVConnectorRole.SCHEDULER:
            from kvtool.connectors.vllm.scheduler import SchedulerSide

            self._scheduler = SchedulerSide(vllm_config, settings)
        else:
            from kvtool.connectors.vllm.worker import WorkerSide

            self._worker = WorkerSide(vllm_config, kv_cache_config, settings)

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # The scheduler's side.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        assert self._scheduler is not None
        return self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        assert self._scheduler is not None
        return self._scheduler.take_orders(is_idle=scheduler_output.total_num_scheduled_tokens == 0)

    def update_connector_output(self, connector_output: Any) -> None:
        assert self._scheduler is not None
        meta = connector_output.kv_connector_worker_meta
        faults = meta.request_ids if isinstance(meta, Faults) else ()
        self._scheduler.loaded(connector_output.finished_recving or (), faults)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduler is not None
        self._scheduler.finished(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """Stops: vLLM resets caches after its weights were replaced, by others than are on disk."""
        if self._scheduler is not None:
            self._scheduler.stop("vLLM's caches were reset, so that its weights may have been replaced")
        return True

    # The workers' side.

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        assert self._worker is not None
        self._worker.register(kv_caches)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        assert self._worker is not None
        self._worker.start(self._orders)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        assert self._worker is not None
        over, failed = self._worker.results(finished_req_ids, is_idle=self._orders.is_idle)
        return KVConnectorTransferResults(finished_recving=over, failed_recving=failed)

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        assert self._worker is not None
        return self._worker.take_faults()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: a request is computed once all of its layers are loaded."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved: caches are made ahead of time."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()

    @property
    def _orders(self) -> Orders:
        orders = self._get_connector_metadata()
        assert isinstance(orders, Orders)
        return orders

    # What both say of it.

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        side = self._scheduler or self._worker
        return side.counts.take() if side else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return KvtoolStats(data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> KvtoolPromMetrics:
        return KvtoolPromMetrics(*args)
