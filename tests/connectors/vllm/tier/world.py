"""vLLM around a tier: its own connector's scheduler side, and its workers' copies from the CPU tier, on plain tensors.

The copies are those that vLLM's worker plans from the blocks that it registers; bytes are moved where a GPU would move them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import OffloadingConnectorWorker
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.cpu import gpu_worker
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec
from vllm.v1.request import Request
from vllm.v1.worker.utils import allocate_kv_cache

from kvtool.artifact.read import Artifact

BLOCK = 16
LAYOUT = KVCacheLayout.LBNHC
GPU_BLOCKS = 64


def engine_config(directory: Path, tier: dict[str, Any], **options: Any) -> Any:
    """A ``VllmConfig`` with a kvtool tier of these settings. ``tp`` and ``hash_name``; the rest is the connector's."""
    tp, hash_name = options.pop("tp", 1), options.pop("hash_name", "sha256")
    module = "kvtool.connectors.vllm.tier"
    extra = {
        "spec_name": "TieringOffloadingSpec",
        "cpu_bytes_to_use": 1 << 20,
        "secondary_tiers": [{"type": "KvtoolTier", "module_path": module, **tier}],
        **options,
    }
    transfer = KVTransferConfig(
        kv_connector="OffloadingConnector", kv_role="kv_both", kv_connector_extra_config=extra
    )
    config = EngineArgs(
        model=str(directory),
        dtype="float32",
        block_size=BLOCK,
        prefix_caching_hash_algo=hash_name,
        kv_transfer_config=transfer,
    ).create_engine_config()
    config.cache_config.kv_cache_layout = LAYOUT.name
    # Here, since the CPU's platform has its own opinion of several workers.
    config.parallel_config.tensor_parallel_size = config.parallel_config.world_size = tp
    config.parallel_config.distributed_executor_backend = "mp"
    return config


def groups_of(config: Any) -> list[KVCacheGroupSpec]:
    """The groups of layers that vLLM makes of a model: those with a window are of another kind."""
    text, tp = config.model_config.hf_text_config, config.parallel_config.tensor_parallel_size
    if config.model_config.use_mla:
        size = text.kv_lora_rank + text.qk_rope_head_dim
        latent = MLAAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=size, dtype=torch.float32)
        return [KVCacheGroupSpec(_names(range(text.num_hidden_layers)), latent)]
    common: dict[str, Any] = {
        "block_size": BLOCK,
        "num_kv_heads": max(1, text.num_key_value_heads // tp),
        "head_size": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "dtype": torch.float32,
    }
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    windowed = [index for index, kind in enumerate(kinds) if kind == "sliding_attention"]
    full = [index for index in range(len(kinds)) if index not in windowed]
    groups = [KVCacheGroupSpec(_names(full), FullAttentionSpec(**common))]
    if windowed:
        spec = SlidingWindowSpec(sliding_window=text.sliding_window, **common)
        groups.append(KVCacheGroupSpec(_names(windowed), spec))
    return groups


def kv_cache_of(config: Any, groups: Sequence[KVCacheGroupSpec]) -> Any:
    page = max(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in groups)
    made = kv_cache_utils.get_kv_cache_config_from_groups(config, list(groups), GPU_BLOCKS * page)
    made.kv_cache_layout = LAYOUT.name
    return made


def _names(indexes: Sequence[int]) -> list[str]:
    return [f"model.layers.{index}.self_attn.attn" for index in indexes]


def request(token_ids: Sequence[int], config: Any, **options: Any) -> Request:
    """A request, whose blocks are hashed as the engine hashes them."""
    function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    return Request(
        request_id=options.pop("request_id", "r"),
        prompt_token_ids=list(token_ids),
        sampling_params=SamplingParams(),
        pooling_params=None,
        block_hasher=kv_cache_utils.get_request_block_hasher(BLOCK, function),
        **options,
    )


def adapter(directory: Path) -> LoRARequest:
    return LoRARequest("some-adapter", 1, str(directory))


class World:
    """An engine's scheduler side whose second tier is kvtool's. ``manager`` is vLLM's, ``tier`` ours."""

    def __init__(self, config: Any, groups: Sequence[KVCacheGroupSpec] | None = None) -> None:
        self.config = config
        self.kv_cache = kv_cache_of(config, groups or groups_of(config))
        self.connector = OffloadingConnector(config, KVConnectorRole.SCHEDULER, self.kv_cache)
        # As EngineCore does: after the connector is there.
        name = config.cache_config.prefix_caching_hash_algo
        kv_cache_utils.init_none_hash(get_hash_fn_by_name(name))
        self.manager: Any = self.connector.scheduler.manager
        (self.tier,) = self.manager.secondary_tiers
        self.spec: Any = self.tier._offloading_spec

    def keys(self, asked: Request, group: int = 0) -> list[Any]:
        """What vLLM asks for: a key for each whole chunk of a request."""
        step = self.spec.blocks_per_chunk
        return [make_offload_key(block, group) for block in asked.block_hashes[step - 1 :: step]]

    def wait_for(self, key: Any, seconds: float = 20.0) -> None:
        """Until the tier has the chunk."""
        until = time.monotonic() + seconds
        while self.tier.lookup(key, ReqContext("w")) is not LookupResult.HIT:
            assert time.monotonic() < until, "the tier never found it"
            time.sleep(0.01)

    def promote(self, keys: Sequence[Any], seconds: float = 20.0, req_id: str = "r") -> list[LookupResult]:
        """Asks for chunks in steps of the engine, until each of them is a hit or a miss."""
        context = ReqContext(req_id)
        self.manager.on_new_request(context)
        until = time.monotonic() + seconds
        while True:
            results = [self.manager.lookup(key, context) for key in keys]
            self.manager.on_schedule_end(ScheduleEndContext({req_id}, ()))
            waiting = {LookupResult.HIT_PENDING, LookupResult.RETRY}
            if waiting.isdisjoint(results):
                self.manager.on_request_finished(context)
                return results
            assert time.monotonic() < until, "the engine waits for ever"
            time.sleep(0.005)

    def matched(self, asked: Request, seconds: float = 20.0) -> tuple[int, bool]:
        """What vLLM's scheduler is told of a request, asking in each of its steps until there is an answer."""
        until = time.monotonic() + seconds
        while True:
            tokens, is_async = self.connector.get_num_new_matched_tokens(asked, 0)
            if tokens is not None:
                return tokens, is_async
            self.manager.on_schedule_end(ScheduleEndContext((), ()))
            assert time.monotonic() < until, "the engine waits for ever"
            time.sleep(0.005)

    def blocks(self, keys_by_group: Sequence[Sequence[Any]], rank: int = 0) -> dict[str, Tensor]:
        """Each layer's [blocks, H, T, C] on a worker, once it has copied these chunks: block after block in their order."""
        self.config.parallel_config.rank = rank
        caches = allocate_kv_cache(self.kv_cache, torch.device("cpu"), LAYOUT)
        plan = _plan(self.config, self.kv_cache, caches)
        context, per_chunk = ReqContext("copy"), self.spec.blocks_per_chunk
        made, first = {}, 0
        for group, keys in enumerate(keys_by_group):
            rows = self.manager.primary_tier._prepare_load(keys, context, record_access=False).chunk_ids
            blocks = np.arange(first, first + len(keys) * per_chunk, dtype=np.int32)
            _copy(plan, group, np.asarray(rows, dtype=np.int32), blocks)
            self.manager.primary_tier.complete_load(keys, context)
            for name in self.kv_cache.kv_cache_groups[group].layer_names:
                made[name] = caches[name][torch.from_numpy(blocks).long()].clone()
            first += len(blocks)
        del plan
        return made

    def close(self) -> None:
        self.connector.shutdown()


class _Planned:
    """In place of vLLM's copies to a GPU, what they would copy."""

    made: ClassVar[list[Any]] = []

    def __init__(self, **options: Any) -> None:
        self.options = options
        _Planned.made.append(self)

    def shutdown(self) -> None:
        """Nothing runs."""


def _plan(config: Any, kv_cache: Any, caches: dict[str, Tensor]) -> Any:
    """vLLM's own copies from the CPU tier into these blocks, with nothing to run them on."""
    _Planned.made.clear()
    with (
        patch.object(gpu_worker, "SingleDirectionOffloadingHandler", _Planned),
        # vLLM's own refuses CPUs.
        patch.object(TieringOffloadingSpec, "get_worker", TieringOffloadingSpec.create_worker),
    ):
        worker: Any = OffloadingConnector(config, KVConnectorRole.WORKER, kv_cache).connector_worker
        assert isinstance(worker, OffloadingConnectorWorker)
        worker.register_kv_caches(caches)
    options = next(made.options for made in _Planned.made if not made.options["gpu_to_cpu"])
    plan: Any = object.__new__(gpu_worker.SingleDirectionOffloadingHandler)
    plan.gpu_to_cpu, plan.worker = False, worker
    plan.layer_refs_per_group = options["layer_refs_per_group"]
    plan.src_tensors, plan.dst_tensors = options["cpu_tensors"], options["gpu_tensors"]
    plan.src_blocks_per_chunk, plan.dst_blocks_per_chunk = options["blocks_per_chunk"], 1
    plan.is_canonical = options["canonical_layout"]
    plan._canonical_copy_plans = None
    if plan.is_canonical:
        plan._canonical_copy_plans = [
            [gpu_worker._build_copy_plan(ref, False) for ref in refs] for refs in plan.layer_refs_per_group
        ]
        plan._scratch_bases_src = plan._scratch_bases_dst = np.empty(0, dtype=np.uint64)
    return plan


def _copy(plan: Any, group: int, rows: np.ndarray, blocks: np.ndarray) -> None:
    sizes_by_group = [len(blocks) if index == group else 0 for index in range(len(plan.layer_refs_per_group))]
    most = plan._estimate_max_copy_ops(sizes_by_group)
    src, dst, sizes = (np.zeros(most, dtype=np.int64) for _ in range(3))
    fill = plan._fill_canonical_ops if plan.is_canonical else plan._fill_direct_ops
    done, _ = fill(group, rows, blocks, len(blocks), 0, 0, src, dst, sizes, 0)
    for source, target, size in zip(src[:done], dst[:done], sizes[:done], strict=True):
        ctypes.memmove(int(target), int(source), int(size))


def cells(parts: Sequence[Artifact], *, in_pairs: bool = False) -> list[Tensor]:
    """Keys and values side by side of each layer, [H, T, D + Dv], of a prefix and a segment.

    ``in_pairs``: of the values, channel i turns with channel i + 1, and not with the one half a head on.
    """
    kvs = [part.kv() for part in parts]
    return [
        torch.cat(
            [torch.cat([layer.keys, _paired(layer.values, in_pairs)], dim=-1) for layer in layers], dim=1
        )
        for layers in zip(*(kv.layers for kv in kvs), strict=True)
    ]


def _paired(values: Tensor, in_pairs: bool) -> Tensor:
    size = values.shape[-1]
    order = [channel // 2 + channel % 2 * (size // 2) for channel in range(size)]
    return values[..., order] if in_pairs else values


def token_ids(parts: Sequence[Artifact]) -> list[int]:
    return [int(token) for part in parts for token in part.token_ids]


@contextmanager
def world(config: Any, groups: Sequence[KVCacheGroupSpec] | None = None) -> Iterator[World]:
    made = World(config, groups)
    try:
        yield made
    finally:
        made.close()
