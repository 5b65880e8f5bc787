"""vLLM's own scheduler over both sides of the connector, with plain tensors for blocks and nothing computed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from kvtool.connectors.vllm.connector import KvtoolConnector
from tests.connectors.vllm.conftest import Case
from tests.connectors.vllm.models import WINDOW

BLOCK = 16
LAST_SECONDS = 20.0


class PlainLayer(AttentionLayerBase):  # type: ignore[misc]
    """A layer whose blocks are [B, H, N, K + V], as most of vLLM's backends have them."""

    def __init__(self, n_heads: int, size: int) -> None:
        self.num_kv_heads, self.head_size, self.impl = n_heads, size, self

    def get_attn_backend(self) -> Any:
        raise NotImplementedError

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        raise NotImplementedError

    def do_kv_cache_update(self, *arguments: Any) -> None:
        _, key, value, kv_cache, slots = arguments
        assert key.shape == value.shape == (len(slots), self.num_kv_heads, self.head_size)
        size = kv_cache.shape[2]
        kv_cache[slots // size, :, slots % size] = torch.cat([key, value], -1)


class LatentLayer(PlainLayer):
    """A layer of latent attention, whose blocks are [B, 1, N, latent + rotated]."""

    kv_cache_dtype, _k_scale = "auto", None

    def __init__(self, latent: int, rotated: int) -> None:
        super().__init__(1, latent)
        self.kv_lora_rank, self.qk_rope_head_dim = latent, rotated

    def do_kv_cache_update(self, *arguments: Any) -> None:
        latent, rotated, kv_cache, slots, *_ = arguments
        assert latent.shape == (len(slots), self.kv_lora_rank)
        assert rotated.shape == (len(slots), 1, self.qk_rope_head_dim)
        kv_cache[slots // BLOCK, :, slots % BLOCK] = torch.cat([latent[:, None], rotated], -1)


@dataclass
class Harness:
    """One engine. ``step`` does what its loop does; a request's prompt counts as computed once it is scheduled."""

    case: Case
    windows: bool = False
    n_blocks: int = 400
    rank: int = 0
    n_ranks: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    """Tokens that were computed of each request's prompt."""

    def __post_init__(self) -> None:
        transfer = {
            "kv_connector": "KvtoolConnector",
            "kv_connector_module_path": "kvtool.connectors.vllm",
            "kv_role": "kv_consumer",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"store": str(self.case.store.root), **self.options},
        }
        arguments = EngineArgs(
            model=str(self.case.directory),
            dtype="float32",
            max_model_len=2048,
            enforce_eager=True,
            block_size=BLOCK,
            kv_transfer_config=transfer,
            max_num_seqs=8,
        )
        config = arguments.create_engine_config()
        config.cache_config.num_gpu_blocks = self.n_blocks
        geometry = self.case.store.open(next(iter(self.case.store))).contents.geometry
        (heads, size), (_, value_size) = geometry.layers[0].keys, geometry.layers[0].values
        own_heads = max(1, heads // self.n_ranks)
        make = (
            partial(LatentLayer, size, value_size)
            if size != value_size
            else partial(PlainLayer, own_heads, size)
        )
        self.layers = {f"model.layers.{i}.self_attn.attn": make() for i in range(len(geometry.layers))}
        config.compilation_config.static_forward_context.update(self.layers)
        self.blocks = {
            name: torch.full((self.n_blocks, own_heads, BLOCK, size + value_size), torch.nan)
            for name in self.layers
        }
        spec = {"block_size": BLOCK, "num_kv_heads": own_heads, "head_size": size, "dtype": torch.float32}
        names = list(self.layers)
        groups = [KVCacheGroupSpec(names, FullAttentionSpec(**spec))]
        if self.windows:
            groups = [
                KVCacheGroupSpec(names[::2], SlidingWindowSpec(**spec, sliding_window=WINDOW)),
                KVCacheGroupSpec(names[1::2], FullAttentionSpec(**spec)),
            ]
        layout = KVCacheConfig(self.n_blocks, [], groups)
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler = Scheduler(config, layout, StructuredOutputManager(config), BLOCK)
        self.worker = KvtoolConnector(config, KVConnectorRole.WORKER, layout)
        self.worker.register_kv_caches(self.blocks)
        self.config = config

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        *,
        params: Any = None,
        sampling: Mapping[str, Any] = MappingProxyType({}),
        **fields: Any,
    ) -> Request:
        """A request, with ``params`` as its ``kv_transfer_params`` and other ``fields`` of it."""
        extra = {"kv_transfer_params": params} if params is not None else None
        chosen = SamplingParams(max_tokens=4, ignore_eos=True, extra_args=extra, **sampling)
        chosen.update_from_generation_config({}, 256)
        request = Request(name, list(prompt), chosen, None, block_hasher=self.hasher, **fields)
        self.scheduler.add_request(request)
        return request

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        output = self.scheduler.schedule()
        self.worker.bind_connector_metadata(output.kv_connector_metadata)
        self.worker.start_load_kv(None)
        results = self.worker.get_transfer_results(output.finished_req_ids)
        self.worker.clear_connector_metadata()
        for name, tokens in output.num_scheduled_tokens.items():
            self.computed[name] = self.computed.get(name, 0) + tokens
        names = list(output.num_scheduled_tokens)
        transfer = KVConnectorOutput(
            finished_recving=results.finished_recving,
            failed_recving=results.failed_recving,
            kv_connector_worker_meta=self.worker.build_connector_worker_meta(),
        )
        sampled = [[7] if self._is_computed(name) else [] for name in names]
        done = ModelRunnerOutput(
            names, {name: i for i, name in enumerate(names)}, sampled, kv_connector_output=transfer
        )
        self.scheduler.update_from_output(output, done)

    def run(self) -> None:
        """Steps until all requests are answered. Fails after ``LAST_SECONDS``: nothing may hang."""
        until = time.monotonic() + LAST_SECONDS
        while self.scheduler.has_requests():
            assert time.monotonic() < until, "the engine hangs"
            self.step()

    def run_until(self, request: Request, status: RequestStatus) -> None:
        until = time.monotonic() + LAST_SECONDS
        while request.status != status:
            assert time.monotonic() < until, f"the request stays {request.status!r}"
            self.step()

    def block_ids(self, request: Request) -> tuple[list[int], ...]:
        return self.scheduler.kv_cache_manager.get_block_ids(request.request_id)  # type: ignore[no-any-return]

    def _is_computed(self, name: str) -> bool:
        request = self.scheduler.requests[name]
        return bool(request.num_computed_tokens >= request.num_prompt_tokens)


def held(harness: Harness, layer: int, group_blocks: Sequence[int], tokens: int) -> tuple[Tensor, Tensor]:
    """Keys [H, T, D] and values [H, T, Dv] of a layer's first ``tokens``, as its blocks have them."""
    blocks = list(harness.blocks.values())[layer]
    positions = torch.arange(tokens)
    ids = torch.tensor(group_blocks)[positions // BLOCK]
    states = blocks[ids, :, positions % BLOCK].transpose(0, 1)
    size = list(harness.layers.values())[layer].head_size
    return states[..., :size], states[..., size:]
