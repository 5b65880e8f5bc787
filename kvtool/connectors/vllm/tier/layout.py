"""Where keys and values lie in the rows of vLLM's CPU tier.

vLLM 0.32: the CPU tier's memory has a row for each chunk of ``blocks_per_chunk`` blocks. A row has a part for each worker, one
after the other, of ``cpu_page_size_per_worker`` bytes; a single part where all workers hold the same (``replicated_layout``),
or where the parts are merged to one page of all heads (``canonical_layout``). A part has the pages of the first layer of its
group, block after block, then those of the second, and so on: groups overlay each other. In the layout LBNHC, which an
``OffloadingConnector`` asks for, a page holds for each token and each head its keys, then its values; in latent attention the
latent, then the rotated part, whose channels that turn together lie side by side. What is laid out otherwise, or could be, is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, MLAAttentionSpec, SlidingWindowSpec

from kvtool.connectors.reading import LayerSpan
from kvtool.connectors.vllm.layers import rank_heads
from kvtool.connectors.vllm.tier.engine import Engine
from kvtool.connectors.vllm.unsuited import drafts_with_model
from kvtool.errors import MismatchError, UsageError

LAYOUT = "LBNHC"
_PLAIN: Mapping[str, Any] = {
    "kv_quant_mode": KVQuantMode.NONE,
    "num_head_slots": None,
    "state_content_bytes": None,
    "tokens_per_state": 1,
    "page_size_padded": None,
}
"""What the spec of a layer says that keeps one key and one value for each token and head, unpacked."""


NO_ROW = -1
"""In place of a row: these tokens are not to be written."""


@dataclass(frozen=True)
class Rows:
    """How the rows of a CPU tier are divided. ``part_bytes`` lie from the beginning of one worker's part to the next's.

    ``n_heads`` is how many heads the model has in all, as the engine counts them; ``is_merged``: one part holds all of them.
    """

    dtype: torch.dtype
    n_ranks: int
    n_heads: int
    part_bytes: int
    is_merged: bool

    def parts(self, n_heads: int) -> list[range]:
        """The heads that each part holds of a layer."""
        if self.is_merged:
            return [range(n_heads)]
        return [rank_heads(n_heads, rank, self.n_ranks) for rank in range(self.n_ranks)]


class Memory:
    """The CPU tier's memory, until it is let go of: vLLM cannot free it before."""

    def __init__(self, view: memoryview) -> None:
        self._bytes: Tensor | None = torch.from_numpy(np.asarray(view)).view(torch.uint8)

    @property
    def rows(self) -> Tensor:
        """[rows, bytes] uint8."""
        assert self._bytes is not None, "nothing is written once the tier is shut down"
        return self._bytes

    def release(self) -> None:
        self._bytes = None


@dataclass(frozen=True)
class PrimaryLayer:
    """One layer's place in the CPU tier: it is the ``position``-th of ``group``, whose rows hold ``chunk_tokens`` each.

    It takes what ``connectors.vllm.layers.Layer`` takes, and writes it into rows instead of blocks.
    """

    name: str
    group: int
    position: int
    chunk_tokens: int
    spec: Any
    division: Rows
    memory: Memory

    @property
    def blocks(self) -> Tensor:
        return self.memory.rows

    @property
    def is_latent(self) -> bool:
        """Whether it is of latent attention (MLA)."""
        return isinstance(self.spec, MLAAttentionSpec)

    def write(self, span: LayerSpan, row_ids: Sequence[int], rank: int = 0, n_ranks: int = 1) -> int:
        """Writes what ``span`` has of the chunks that have a row, and returns the bytes. ``row_ids`` count from position 0.

        Raises ``MismatchError`` for other sizes than the layer's.
        """
        self._refuse(span)
        positions = torch.arange(span.start, span.stop)
        ids = torch.tensor(row_ids, dtype=torch.int64)
        # Chunks beyond the last that is wanted have no row either.
        wanted = positions < len(row_ids) * self.chunk_tokens
        wanted[wanted.clone()] = ids[positions[wanted] // self.chunk_tokens] != NO_ROW
        positions = positions[wanted]
        rows, tokens = ids[positions // self.chunk_tokens], positions % self.chunk_tokens
        # All of vLLM's latent attention has its channels in pairs.
        values = span.interleaved_values() if self.is_latent else span.values
        cells = torch.cat([span.keys[:, wanted], values[:, wanted]], dim=-1).transpose(0, 1)
        parts = self.division.parts(cells.shape[1])
        for part, heads in enumerate(parts):
            pages = self._pages(part, len(heads), cells.shape[2])
            pages[rows, tokens] = cells[:, heads.start : heads.stop]
        return sum(len(heads) for heads in parts) * cells[:, 0].nbytes

    def _pages(self, part: int, heads: int, channels: int) -> Tensor:
        """The layer's blocks in one part of each row, [rows, T, H, D + Dv]."""
        shape = self.chunk_tokens, heads, channels
        nbytes = math.prod(shape) * self.division.dtype.itemsize
        start = part * self.division.part_bytes + self.position * nbytes
        rows = self.memory.rows[:, start : start + nbytes].view(self.division.dtype)
        return rows.view(len(rows), *shape)

    def _refuse(self, span: LayerSpan) -> None:
        (n_heads, _, key_size), (value_heads, _, value_size) = span.keys.shape, span.values.shape
        spec, division = self.spec, self.division
        sizes = (key_size + value_size, 0) if self.is_latent else (key_size, value_size)
        if value_heads != n_heads or sizes != (spec.head_size, spec.head_size_v):
            found = f"{n_heads} x {key_size} channels of keys, {value_heads} x {value_size} of values"
            expected = f"{spec.head_size} and {spec.head_size_v}"
            raise MismatchError(self.name, f"a cache has {found}, the layer's head sizes are {expected}")
        total = 1 if self.is_latent else division.n_heads
        splits = total % division.n_ranks == 0 or division.n_ranks % total == 0
        if n_heads != total or not splits or spec.num_kv_heads != max(1, total // division.n_ranks):
            held = f"{total}, {spec.num_kv_heads} on each of {division.n_ranks} workers"
            raise MismatchError(self.name, f"a cache has {n_heads} heads, the engine {held}")


def layers_of(engine: Engine, memory: Memory) -> dict[int, PrimaryLayer]:
    """An engine's layers by their number.

    Raises ``UsageError``, naming the field, for an engine into whose CPU tier nothing can be written with certainty."""
    for subject, value, expected in _settings(engine):
        if value != expected:
            raise UsageError(f"{subject} {value}", f"a kvtool tier writes for {expected} alone")
    spec, offloading, model = engine.spec, engine.spec.config, engine.config.model_config
    tp_size = offloading.parallel.tp_size
    division = Rows(
        model.dtype,
        tp_size,
        model.get_total_num_kv_heads(),
        spec.cpu_page_size_per_worker,
        is_merged=tp_size == 1 or offloading.canonical_layout or spec.replicated_layout,
    )
    sizes = {group.group_id: group.tokens_per_block for group in offloading.groups}
    layers: dict[int, PrimaryLayer] = {}
    for group_id, group in enumerate(engine.kv_cache.kv_cache_groups):
        chunk_tokens = sizes[group_id] * offloading.cache.blocks_per_chunk
        for position, name in enumerate(group.layer_names):
            index = _layer_index(name)
            if index in layers:
                raise UsageError(name, f"is one of several caches of layer {index}")
            layers[index] = PrimaryLayer(
                name, group_id, position, chunk_tokens, group.kv_cache_spec, division, memory
            )
    return layers


def _settings(engine: Engine) -> Iterator[tuple[str, object, object]]:
    """What the engine must be like: a name, its value, and the value that is understood."""
    offloading, kv_cache = engine.spec.config, engine.kv_cache
    parallel = offloading.parallel
    yield "kv_cache_layout", offloading.kv_cache_layout, LAYOUT
    yield "decode_context_parallel_size", parallel.dcp_size, 1
    yield "prefill_context_parallel_size", parallel.pcp_size, 1
    yield "pipeline_parallel_size", parallel.pp_size, 1
    yield "world_size", parallel.world_size, parallel.tp_size
    groups = kv_cache.kv_cache_groups
    if offloading.canonical_layout and parallel.tp_size > 1:
        # The workers then refuse to start with a layer whose pages they cannot merge.
        yield "canonical_layout: is_parallelism_agnostic", parallel.is_parallelism_agnostic, True
        yield "canonical_layout: groups of layers", len(groups), 1
    yield "draft model:", drafts_with_model(engine.config), False
    yield "offloaded groups", [group.group_id for group in offloading.groups], list(range(len(groups)))
    page = groups[0].kv_cache_spec.page_size_bytes
    for index, group in enumerate(groups):
        yield from _group_settings(engine, index, group, page)
    most = max(len(group.layer_names) for group in groups)
    yield "worker_kv_bytes_per_block", offloading.worker_kv_bytes_per_block, page * most


def _group_settings(
    engine: Engine, index: int, group: Any, page: int
) -> Iterator[tuple[str, object, object]]:
    name, layer, kv_cache = f"group {index}:", group.kv_cache_spec, engine.kv_cache
    kinds = (FullAttentionSpec, SlidingWindowSpec, MLAAttentionSpec)
    yield f"{name} {type(layer).__name__}", type(layer) in kinds, True
    yield f"{name} dtype", layer.dtype, engine.config.model_config.dtype
    for field, expected in _PLAIN.items():
        yield f"{name} {field}", getattr(layer, field), expected
    yield f"{name} page_size_bytes", layer.page_size_bytes, page
    yield f"{name} is_eagle_group", group.is_eagle_group, False
    yield f"{name} host_resident", group.host_resident, False
    found = [
        (tensor.layers, tensor.offset, tensor.layer_stride, tensor.block_stride)
        for tensor in kv_cache.kv_cache_tensors
        if not set(tensor.layers).isdisjoint(group.layer_names)
    ]
    yield f"{name} kv_cache_tensors", found, [(group.layer_names, 0, page * kv_cache.num_blocks, page)]


def _layer_index(name: str) -> int:
    try:
        return int(extract_layer_index(name))
    except (AssertionError, ValueError) as error:
        raise UsageError(name, "is not the cache of one numbered layer") from error
