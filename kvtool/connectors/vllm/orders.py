"""What the connector's two sides tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

if TYPE_CHECKING:
    from kvtool.connectors.block_index import Source
    from kvtool.connectors.lookup import CachedPrefix

NULL_BLOCK = 0
"""The block of tokens that a layer with a sliding window sees no more; nothing is written there."""


@dataclass(frozen=True)
class LoadOrder:
    """Loads the positions ``tokens`` of a cache into the blocks of a request.

    ``block_ids`` has a list for each group of layers, from position 0 on.
    """

    request_id: str
    found: CachedPrefix | Source
    tokens: range
    block_ids: tuple[Sequence[int], ...]


@dataclass
class Orders(KVConnectorMetadata):
    """The loads that begin in one step. ``is_idle``: the model has nothing to compute in it."""

    loads: list[LoadOrder] = field(default_factory=list)
    is_idle: bool = False


@dataclass
class Faults(KVConnectorWorkerMetadata):
    """Requests whose load failed because of the cache: it is broken, gone, or comes too slowly."""

    request_ids: set[str]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, Faults)
        return Faults(self.request_ids | other.request_ids)
