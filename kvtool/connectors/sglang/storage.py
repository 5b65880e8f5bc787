"""The storage backend that SGLang's hierarchical cache loads as ``dynamic``.

Relied on, in sglang 0.5.23: ``StorageBackendFactory`` calls the class as ``cls(storage_config, kwargs)`` in every process, then
``register_mem_pool_host(pool)``, then ``register_mem_host_pool_v2`` for each pool, and ``on_host_pools_registered()``. Its
keys are the pages' bare hashes. With ``"interface_v1": 1`` it calls ``batch_get_v1``, else ``batch_get``; ``batch_exists`` before
both. What these return: how many first keys are there; for each key whether its page was filled, or the page, and None. It
reads no page after the first that is missing. Models with more state than keys and values (windows, Mamba, indexers) go through
the methods with ``v2``.

The store is read only. ``set`` says whether the page is in the store, which is what its contract asks; nothing is ever written.
SGLang then logs that a page was not stored, and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolName, PoolTransferResult
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from torch import Tensor

from kvtool.connectors.sglang.engine import engine, weights
from kvtool.connectors.sglang.pages import Pages, Shard
from kvtool.connectors.sglang.settings import Settings
from kvtool.connectors.sglang.tier import Tier
from kvtool.errors import MismatchError
from kvtool.store.open import open_store

_log = logging.getLogger(__name__)


class KvtoolStorage(HiCacheStorage):
    """A store's documents as pages. Raises ``KvtoolError`` at the start for settings that make no sense; later, all is a miss."""

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        self.config = storage_config
        self.settings = Settings.of(storage_config.extra_config or {})
        self.store = open_store(self.settings.store, existing=True)
        self._tier: Tier | None = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self.close()
        try:
            self._weights = weights()
            self._tier = self._opened(mem_pool_host)
            self._tier.index.follow()
        except Exception as error:
            self._give_up(error)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if host_pool_name != PoolName.KV:
            self._give_up(f"the model has a pool {host_pool_name!s} beside keys and values")

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        return tier.held(keys) if (tier := self._usable()) else 0

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Tensor | None:
        return self.batch_get([key], None if target_location is None else [target_location])[0]

    def batch_get(
        self, keys: Sequence[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[Tensor | None]:
        if (tier := self._usable()) is None:
            return [None] * len(keys)
        flat = target_locations or [self.mem_pool_host.get_dummy_flat_data_page() for _ in keys]
        n = tier.read(keys, [tier.pages.flat(page) for page in flat])
        return [page if i < n else None for i, page in enumerate(flat)]

    def batch_get_v1(self, keys: Sequence[str], host_indices: Tensor, extra_info: Any = None) -> list[bool]:
        if (tier := self._usable()) is None:
            return [False] * len(keys)
        first = host_indices[:: tier.pages.n_tokens].tolist()
        n = tier.read(keys, [tier.pages.at(index) for index in first])
        return [i < n for i in range(len(keys))]

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.exists(key)

    def batch_set(
        self, keys: Sequence[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        return self.batch_exists(keys) == len(keys)

    def batch_set_v1(self, keys: Sequence[str], host_indices: Tensor, extra_info: Any = None) -> list[bool]:
        n = self.batch_exists(keys)
        return [i < n for i in range(len(keys))]

    def batch_exists_v2(
        self, keys: Sequence[str], pool_transfers: Any = None, extra_info: Any = None
    ) -> PoolTransferResult:
        return PoolTransferResult(0 if pool_transfers else self.batch_exists(keys, extra_info), {})

    def batch_get_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        return _none_of(transfers)

    def batch_set_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        return _none_of(transfers)

    def clear(self) -> None:
        """Frees what is decoded; the store stays as it is."""
        if self._tier:
            self._tier.loads.clear()

    def close(self) -> None:
        if self._tier:
            self._tier.close()
        self._tier = None

    def _opened(self, pool: Any) -> Tier:
        config = self.config
        if config.attn_cp_size > 1:
            raise MismatchError("SGLang", f"has attn_cp_size {config.attn_cp_size}, expected 1")
        if type(pool) not in (MHATokenToKVPoolHost, MLATokenToKVPoolHost):
            raise MismatchError("SGLang", f"has pages of another kind ({type(pool).__name__})")
        shard = Shard(config.tp_rank, config.tp_size, config.pp_rank == config.pp_size - 1)
        pages = Pages.of(pool, shard)
        return Tier(self.store, engine(pages), pages, self.settings)

    def _usable(self) -> Tier | None:
        if self._tier and (now := weights()) != self._weights:
            changed = ", ".join(
                f"{name} {value}" for name, value in now.items() if value != self._weights[name]
            )
            self._give_up(f"SGLang's weights were replaced: {changed}")
        return self._tier

    def _give_up(self, reason: object) -> None:
        _log.warning("no document of %s is used: %s", self.store, reason)
        self.close()


def _none_of(transfers: Sequence[Any]) -> dict[str, list[bool]]:
    return {transfer.name: [False] * len(transfer.keys or []) for transfer in transfers}
