"""The class that vLLM loads, in the scheduler's process: it answers from memory, and threads load.

vLLM 0.32, ``SecondaryTierManager``. A load that fails is reported as such, and vLLM gives its rows to others: so nothing is
written for a job that was reported, nor after ``shutdown``, when the rows' memory is freed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.v1.kv_offload.base import Locality, LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

if TYPE_CHECKING:
    from kvtool.connectors.vllm.tier.reader import Reader


class KvtoolTier(SecondaryTierManager):
    """Reads the documents of a kvtool store. Nothing is stored in it: caches are made ahead of time.

    ``settings`` are ``store``, ``variant``, ``max_load_seconds`` and ``threads`` of ``connectors.vllm.settings``.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        # Here, not above: other processes of vLLM import this class too, to ask for its metrics.
        from kvtool.connectors.vllm.tier.reader import Reader

        self._stored: list[int] = []
        self._reader: Reader = Reader(offloading_spec, primary_kv_view, settings)
        self.locality = Locality.LOCAL if self._reader.is_local else Locality.REMOTE

    def lookup(self, key: Any, req_context: Any) -> LookupResult:
        return LookupResult.HIT if self._reader.has(key) else LookupResult.MISS

    def submit_load(self, job_metadata: Any) -> None:
        self._reader.load(job_metadata)

    def submit_store(self, job_metadata: Any) -> None:
        """Is done at once, without a copy: what a tier keeps is its own affair, and ``lookup`` says what it has.

        Reported as failures, vLLM would count every block that it computes among those that could not be stored.
        """
        self._stored.append(job_metadata.job_id)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        stored, self._stored = self._stored, []
        results = [JobResult(job_id, True, transfer_time=0.0, transfer_bytes=0) for job_id in stored]
        return results + self._reader.finished()

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def drain_jobs(self) -> None:
        """Waits for the loads, each of which is over after ``max_load_seconds`` at the latest."""
        self._reader.drain()

    def shutdown(self) -> None:
        self._reader.close()
