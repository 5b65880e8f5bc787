"""As much of a server as its storage needs: published arguments, a host pool on the CPU, the backend that its factory makes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController, PrefetchOperation
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import get_mha_host_pool_cls
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
from sglang.srt.runtime_context import get_context
from sglang.srt.server_args import ServerArgs
from torch import Tensor

from kvtool.store.local import LocalStore
from tests.connectors.sglang.stores import LATENT

PAGE = 8
TOKENS = 128 * PAGE


@dataclass(frozen=True)
class Served:
    """A server of one model: its ``storage``, and the ``pool`` that pages come into."""

    store: LocalStore
    storage: Any
    pool: Any

    @classmethod
    def start(
        cls,
        folder: Path,
        name: str,
        *,
        store: Path | None = None,
        layout: str = "layer_first",
        heads: int = 2,
        tp: tuple[int, int] = (0, 1),
        cp: int = 1,
        zero_copy: bool = False,
        args: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> Served:
        get_context().set_server_args(
            ServerArgs(**{"model_path": str(folder / name), "device": "cpu", **(args or {})})
        )
        pool = host_pool(name.startswith("deepseek"), layout, heads, dtype)
        opened = LocalStore(store or folder / f"{name}-kv")
        extra = {
            "backend_name": "kvtool",
            "module_path": "kvtool.connectors.sglang.storage",
            "class_name": "KvtoolStorage",
            "interface_v1": int(zero_copy),
            "kvtool": {"store": str(opened.root), **settings},
        }
        storage = StorageBackendFactory.create_backend("dynamic", _config(name, tp, cp, extra), pool)
        storage.register_mem_pool_host(pool)
        storage.register_mem_host_pool_v2(pool, "kv")
        storage.on_host_pools_registered()
        served = cls(opened, storage, pool)
        served.follow()
        return served

    def follow(self) -> None:
        """Waits until the backend has seen the store as it is now."""
        if (tier := self.storage._tier) is None:
            return
        before, deadline = tier.index._refreshed, time.monotonic() + 30
        while tier.index._refreshed == before and time.monotonic() < deadline:
            tier.index.follow()
            time.sleep(0.005)

    def fetch(self, token_ids: list[int], *, zero_copy: bool = False) -> tuple[int, int]:
        """Has the methods of SGLang's own controller look for a prompt's pages and fetch those it found: how many of either."""
        controller = SimpleNamespace(
            storage_backend=self.storage, storage_host_pool=self.pool, page_size=PAGE, mem_pool_host=self.pool
        )
        operation = PrefetchOperation(SimpleNamespace(rid="request"), token_ids)
        hashes, n_tokens = HybridCacheController._storage_hit_query(controller, operation)
        assert n_tokens == len(hashes) * PAGE
        get = (
            HybridCacheController._page_get_zero_copy
            if zero_copy
            else HybridCacheController._generic_page_get
        )
        return len(hashes), get(controller, operation, hashes, torch.arange(n_tokens))

    def rows(self, n_pages: int) -> Tensor:
        """The pool's first pages, flat, as SGLang reads them."""
        return torch.cat([self.pool.get_data_page(n * PAGE) for n in range(n_pages)])


def host_pool(is_latent: bool, layout: str, heads: int, dtype: torch.dtype) -> Any:
    """SGLang's own host pool over a device pool on the CPU."""
    n_layers = LATENT["num_hidden_layers"]
    if is_latent:
        sizes = LATENT["kv_lora_rank"], LATENT["qk_rope_head_dim"]
        device = MLATokenToKVPool(TOKENS, PAGE, dtype, *sizes, n_layers, "cpu", False)
        kind: Any = MLATokenToKVPoolHost
        more = {"target_layer_num": n_layers}
    else:
        device = MHATokenToKVPool(TOKENS, PAGE, dtype, heads, 8, n_layers, "cpu", False)
        kind = get_mha_host_pool_cls(device.get_device_pool_infos()[0].buffer_info)
        more = {}
    return kind(
        device.get_device_pool_infos()[0].buffer_info,
        2.0,
        0,
        PAGE,
        layout,
        pin_memory=False,
        device="cpu",
        device_capacity_tokens=device.size,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
        **more,
    )


def _config(name: str, tp: tuple[int, int], cp: int, extra: dict[str, Any]) -> HiCacheStorageConfig:
    return HiCacheStorageConfig(
        tp_rank=tp[0],
        tp_size=tp[1],
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=cp,
        is_mla_model=name.startswith("deepseek"),
        enable_storage_metrics=False,
        is_page_first_layout=False,
        model_name=name,
        extra_config=extra,
    )
