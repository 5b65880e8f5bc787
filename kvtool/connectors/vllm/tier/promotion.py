"""Promotions: chunks of the store that are loaded into rows of the CPU tier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.kv_offload.base import get_offload_block_hash, get_offload_group_idx
from vllm.v1.kv_offload.tiering.base import JobResult

from kvtool.connectors.avoided import Avoided
from kvtool.connectors.block_index import Source
from kvtool.connectors.vllm.load import Load, Target
from kvtool.connectors.vllm.orders import LoadOrder
from kvtool.connectors.vllm.tier.blocks import HashedBlocks
from kvtool.connectors.vllm.tier.layout import NO_ROW


@dataclass(frozen=True)
class Chunk:
    """What one key stands for: the ``tokens`` of ``source`` in the layers of ``group``."""

    key: bytes
    source: Source
    group: int
    tokens: range


@dataclass(eq=False)
class Promotion:
    """One job of vLLM's: a load for each source that its chunks are of, and the keys of each."""

    job_id: int
    loads: list[tuple[Load, list[bytes]]] = field(default_factory=list)
    missing: list[bytes] = field(default_factory=list)

    def is_over(self) -> bool:
        """Whether nothing more is written for it."""
        for load, _ in self.loads:
            load.expire()
        return all(load.is_over for load, _ in self.loads)

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
    """Finds chunks by vLLM's keys, and loads them. ``chunk_tokens`` by group of layers."""

    blocks: HashedBlocks
    target: Target
    chunk_tokens: Sequence[int]
    max_seconds: float
    pool: Executor
    _avoided: Avoided[Source] = field(default_factory=Avoided, init=False)

    def find(self, keys: Sequence[Any]) -> list[Chunk | None]:
        """A key is the hash of the last block in a chunk, and the group of layers."""
        found = self.blocks.find([get_offload_block_hash(key) for key in keys], self._avoided.__contains__)
        chunks: list[Chunk | None] = []
        for key, block in zip(keys, found, strict=True):
            group = get_offload_group_idx(key)
            size = self.chunk_tokens[group] if group < len(self.chunk_tokens) else 0
            if block is None or size == 0 or block.tokens.stop % size:
                chunks.append(None)
            else:
                tokens = range(block.tokens.stop - size, block.tokens.stop)
                chunks.append(Chunk(bytes(key), block.source, group, tokens))
        return chunks

    def start(self, job: Any) -> Promotion:
        """Begins to load the chunks of a ``TransferJob``."""
        promotion = Promotion(job.job_id)
        wanted: defaultdict[Source, list[tuple[Chunk, int]]] = defaultdict(list)
        keys = list(job.keys)
        for key, row, chunk in zip(keys, job.chunk_ids.tolist(), self.find(keys), strict=True):
            if chunk is None:
                promotion.missing.append(bytes(key))
            else:
                wanted[chunk.source].append((chunk, row))
        for source, rows in wanted.items():
            load = Load(self._order(job.job_id, source, rows), self.max_seconds, _nobody_waits)
            promotion.loads.append((load, [chunk.key for chunk, _ in rows]))
            load.start(self.target, self.pool.submit)
        return promotion

    def avoid(self, load: Load) -> None:
        """Does not find for a while what a load was to take: it could not be loaded."""
        assert isinstance(load.order.found, Source)
        self._avoided.add(load.order.found)

    def _order(self, job_id: int, source: Source, rows: Collection[tuple[Chunk, int]]) -> LoadOrder:
        start = min(chunk.tokens.start for chunk, _ in rows)
        stop = max(chunk.tokens.stop for chunk, _ in rows)
        row_ids = [[NO_ROW] * -(-stop // size) for size in self.chunk_tokens]
        for chunk, row in rows:
            row_ids[chunk.group][chunk.tokens.start // len(chunk.tokens)] = row
        return LoadOrder(str(job_id), source, range(start, stop), tuple(row_ids))


def _nobody_waits() -> None:
    """vLLM asks for what has finished, step by step."""
