"""Writes keys and values into the blocks of vLLM's layers.

The layer's own attention writes them: it knows how its blocks are laid out in memory, and quantizes them if the engine's cache
is to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models.utils import extract_layer_index

from kvtool.connectors.reading import LayerSpan
from kvtool.connectors.vllm.orders import NULL_BLOCK
from kvtool.errors import MismatchError


@dataclass(frozen=True)
class Layer:
    """One layer of the engine: its blocks, of ``block_size`` tokens, are those of ``group``."""

    name: str
    module: Any
    blocks: Tensor
    group: int
    block_size: int

    def slots(self, tokens: range, block_ids: Sequence[int]) -> Tensor:
        """Where each of ``tokens`` lies, [T] int64; -1 for those that are out of the layer's window."""
        positions = torch.arange(tokens.start, tokens.stop)
        ids = torch.tensor(block_ids, dtype=torch.int64)
        blocks = ids[positions // self.block_size]
        slots = blocks * self.block_size + positions % self.block_size
        return slots.masked_fill_(blocks == NULL_BLOCK, -1)

    @torch.inference_mode()
    def write(self, span: LayerSpan, block_ids: Sequence[int], rank: int, n_ranks: int) -> int:
        """Writes the heads of this rank, and returns their bytes. Raises ``MismatchError`` for other sizes than the layer's."""
        slots = self.slots(range(span.start, span.stop), block_ids)
        kept = slots >= 0
        sides = (span.keys, span.values)
        if not kept.all():
            sides = (span.keys[:, kept], span.values[:, kept])
        if not kept.any():
            return 0
        slots = slots[kept].to(self.blocks.device)
        if hasattr(self.module, "kv_lora_rank"):
            sizes = (1, self.module.kv_lora_rank), (1, self.module.qk_rope_head_dim)
            self._check(span, sizes)
            # All of vLLM's latent attention has its channels in pairs.
            rotated = span.interleaved_values()[:, kept]
            keys, values = self._moved(sides[0])[:, 0], self._moved(rotated)
            module = self.module
            module.impl.do_kv_cache_update(
                keys, values, self.blocks, slots, module.kv_cache_dtype, module._k_scale
            )
        else:
            heads = rank_heads(span.keys.shape[0], rank, n_ranks)
            n_heads = self.module.num_kv_heads
            value_size = getattr(self.module, "head_size_v", self.module.head_size)
            held = len(heads)
            if held != n_heads:
                raise MismatchError(
                    self.name, f"has {n_heads} heads on this worker, the cache gives it {held}"
                )
            total = span.keys.shape[0]
            self._check(span, ((total, self.module.head_size), (total, value_size)))
            keys, values = (self._moved(side[heads.start : heads.stop]) for side in sides)
            self.module.impl.do_kv_cache_update(self.module, keys, values, self.blocks, slots)
        return keys.nbytes + values.nbytes

    def _moved(self, side: Tensor) -> Tensor:
        """[H, T, D] as [T, H, D] on the layer's device."""
        return side.transpose(0, 1).contiguous().to(self.blocks.device)

    def _check(self, span: LayerSpan, sizes: tuple[tuple[int, int], ...]) -> None:
        for side, tensor, expected in zip(("keys", "values"), (span.keys, span.values), sizes, strict=True):
            if (tensor.shape[0], tensor.shape[2]) != expected:
                found = f"{tensor.shape[0]} heads of {tensor.shape[2]} channels"
                raise MismatchError(
                    self.name, f"its {side} have {expected[0]} of {expected[1]}, the cache has {found}"
                )


def rank_heads(n_heads: int, rank: int, n_ranks: int) -> range:
    """The heads that a worker holds of a layer: its share of them, or one that it shares with others."""
    if n_heads >= n_ranks:
        share = n_heads // n_ranks
        return range(rank * share, (rank + 1) * share)
    head = rank * n_heads // n_ranks
    return range(head, head + 1)


def layers_by_index(config: Any, kv_cache_config: Any, kv_caches: Mapping[str, Tensor]) -> dict[int, Layer]:
    """The layers of this worker that have blocks of their own, by their number in the model.

    Raises ``MismatchError`` for a layer whose state is not keys and values.
    """
    modules = get_layers_from_vllm_config(config, AttentionLayerBase)
    layers: dict[int, Layer] = {}
    for group, entry in enumerate(kv_cache_config.kv_cache_groups):
        for name in entry.layer_names:
            module = modules.get(name)
            if module is None or getattr(module, "kv_sharing_target_layer_name", None):
                continue
            if not hasattr(getattr(module, "impl", None), "do_kv_cache_update"):
                raise MismatchError(
                    name, "has an attention that takes no keys and values from others (no do_kv_cache_update)"
                )
            index = extract_layer_index(name)
            if index in layers:
                raise MismatchError(name, f"is one of several caches of layer {index}")
            layers[index] = Layer(name, module, kv_caches[name], group, entry.kv_cache_spec.block_size)
    return layers
