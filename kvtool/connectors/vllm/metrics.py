"""Counts of what was loaded, as vLLM logs and exports them."""

from __future__ import annotations

import threading
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

DESCRIPTIONS = {
    "hits": "Requests whose first tokens were found in the store",
    "tokens": "Tokens that were found in the store",
    "loads": "Caches that were loaded into blocks, by each worker",
    "failures": "Caches that could not be loaded, whose tokens were prefilled",
    "bytes": "Bytes of keys and values that were written into blocks",
    "seconds": "Seconds that loads took from their order to their last layer",
}


class KvtoolStats(KVConnectorStats):
    """Sums of ``DESCRIPTIONS`` over an interval."""

    data: dict[str, Any]

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        return KvtoolStats(
            {
                name: self.data.get(name, 0) + other.data.get(name, 0)
                for name in DESCRIPTIONS
                if name in self.data or name in other.data
            }
        )

    def reduce(self) -> dict[str, int | float]:
        return {f"kvtool {name}": round(value, 3) for name, value in self.data.items()}

    def is_empty(self) -> bool:
        return not any(self.data.values())


class Counts:
    """Sums since they were last taken, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, int | float] = {}

    def add(self, **amounts: int | float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] = self._sums.get(name, 0) + amount

    def take(self) -> KvtoolStats | None:
        """What was added since the last call; None if nothing was."""
        with self._lock:
            sums, self._sums = self._sums, {}
        return KvtoolStats(sums) if sums else None


class KvtoolPromMetrics(KVConnectorPromMetrics):
    """``vllm:kvtool_…`` counters for Prometheus."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._counters = {
            name: self._counter_cls(f"vllm:kvtool_{name}", text, labelnames=self._labelnames)
            for name, text in DESCRIPTIONS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, amount in transfer_stats_data.items():
            self._counters[name].labels(*labels).inc(amount)
