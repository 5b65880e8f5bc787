"""Promotions: chunks of the store that are loaded into rows of the CPU tier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.kv_offload.base import get_offload_block_hash, get_offload_group_idx
from vllm.v1.kv_offload.tiering.base import JobResult

from kvtool.connectors.vllm.load import Load, Target
from kvtool.connectors.vllm.orders import LoadOrder
from kvtool.connectors.vllm.tier.index import BlockIndex, found
from kvtool.connectors.vllm.tier.layout import NO_ROW
from kvtool.store.prefix_index import Entry


@dataclass(frozen=True)
class Chunk:
    """What one key stands for: the ``tokens`` of ``entry`` in the layers of ``group``."""

    key: bytes
    entry: Entry
    group: int
    tokens: range


@dataclass(eq=False)
class Promotion:
    """One job of vLLM's: a load for each cache that its chunks are of, and the keys of each."""

    job_id: int
    loads: list[tuple[Load, list[bytes]]] = field(default_factory=list)
    missing: list[bytes] = field(default_factory=list)

    def is_over(self) -> bool:
        """Whether nothing more is written for it."""
        return all(load.is_over() for load, _ in self.loads)

    def failed(self) -> list[Load]:
        return [load for load, _ in self.loads if load.error is not None]

    def cancel(self, reason: str) -> None:
        for load, _ in self.loads:
            load.cancel(reason)

    def result(self) -> JobResult:
        good = [(load, keys) for load, keys in self.loads if load.error is None]
        return JobResult(
            job_id=self.job_id,
            success=len(good) == len(self.loads) and not self.missing,
            successful_keys=[key for _, keys in good for key in keys] or None,
            transfer_time=max((load.seconds for load, _ in good), default=0.0),
            transfer_bytes=sum(load.nbytes for load, _ in good),
        )


@dataclass(frozen=True)
class Promoter:
    """Finds chunks by key, and loads them. ``chunk_tokens`` by group of layers."""

    index: BlockIndex
    target: Target
    chunk_tokens: Sequence[int]
    max_seconds: float
    pool: Executor

    def find(self, key: Any, preferred: Entry | None = None) -> Chunk | None:
        group = get_offload_group_idx(key)
        if group >= len(self.chunk_tokens):
            return None
        if (held := self.index.find(get_offload_block_hash(key), preferred)) is None:
            return None
        entry, stop = held
        size = self.chunk_tokens[group]
        return None if stop % size else Chunk(bytes(key), entry, group, range(stop - size, stop))

    def start(self, job: Any) -> Promotion:
        """Begins to load the chunks of a ``TransferJob``."""
        promotion = Promotion(job.job_id)
        wanted: defaultdict[Entry, list[tuple[Chunk, int]]] = defaultdict(list)
        preferred: Entry | None = None
        # The last first: a cache that has it may have those before.
        for key, row in reversed(list(zip(job.keys, job.chunk_ids.tolist(), strict=True))):
            if chunk := self.find(key, preferred):
                preferred = chunk.entry
                wanted[chunk.entry].append((chunk, row))
            else:
                promotion.missing.append(bytes(key))
        for entry, rows in wanted.items():
            load = Load(self._order(job.job_id, entry, rows), self.max_seconds, _nobody_waits)
            promotion.loads.append((load, [chunk.key for chunk, _ in rows]))
            load.start(self.target, self.pool)
        return promotion

    def _order(self, job_id: int, entry: Entry, rows: Collection[tuple[Chunk, int]]) -> LoadOrder:
        stop = max(chunk.tokens.stop for chunk, _ in rows)
        start = min(chunk.tokens.start for chunk, _ in rows)
        row_ids = [[NO_ROW] * -(-stop // size) for size in self.chunk_tokens]
        for chunk, row in rows:
            row_ids[chunk.group][chunk.tokens.start // len(chunk.tokens)] = row
        return LoadOrder(str(job_id), found(entry, stop), range(start, stop), tuple(row_ids))


def _nobody_waits() -> None:
    """vLLM asks for what has finished, step by step."""
