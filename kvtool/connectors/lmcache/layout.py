"""LMCache's chunk of a cache, one tensor, as keys and values of layers; and back.

``[2, L, T, C]`` has keys and values of L layers and T tokens, the channels of all heads in a row, as LMCache's
``KV_2LTD``. ``[L, T, C]`` has one plane: latents (MLA), or keys and values in one, ``fused``, as vLLM 0.32 has them. Which
channels are whose is then up to its attention: those of FlashAttention, Triton and FlexAttention have for each head its key
and then its value. Keys are rotated (RoPE), as an engine has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvtool.codecs import KV, CodecError, Geometry, LayerGeometry, LayerKV


@dataclass(frozen=True)
class ChunkTokens:
    """The tokens that a chunk is of: their ids [T], the position of the first, and the model's RoPE parameters."""

    token_ids: Tensor
    start: int
    rope: dict[str, Any] = field(default_factory=dict)


def geometry(shape: Sequence[int], dtype: torch.dtype, heads: int, fused: bool = False) -> Geometry:
    """The geometry of a chunk of this shape. Raises ``CodecError`` for a shape of another kind.

    One plane has keys and values of each head if it is ``fused``, and keys alone if not.
    """
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 2) or 0 in shape:
        raise CodecError(
            f"chunk: its shape is {list(shape)}, expected [2, layers, tokens, channels] or without the 2"
        )
    layers, tokens, channels = shape[-3:]
    is_fused = fused and len(shape) == 3
    if channels % (2 * heads if is_fused else heads):
        raise CodecError(f"chunk: its {channels} channels are not those of {heads} heads")
    keys = heads, channels // heads // (2 if is_fused else 1)
    values = keys if is_fused or len(shape) == 4 else (heads, 0)
    return Geometry(dtype, tokens, (LayerGeometry(tokens, keys, values),) * layers)


def to_kv(chunk: Tensor, heads: int, tokens: ChunkTokens | None, fused: bool = False) -> KV:
    """The chunk's layers. Where its tokens are not known, positions count from 0 and say nothing."""
    sizes = geometry(chunk.shape, chunk.dtype, heads, fused)
    known = tokens or ChunkTokens(torch.zeros(sizes.n_tokens, dtype=torch.int64), 0)
    if len(known.token_ids) != sizes.n_tokens:
        raise CodecError(f"chunk: has {sizes.n_tokens} tokens, expected {len(known.token_ids)}")
    positions = torch.arange(known.start, known.start + sizes.n_tokens)
    layers = [LayerKV(*_sides(chunk, index, size), positions) for index, size in enumerate(sizes.layers)]
    return KV(tuple(layers), known.token_ids, known.rope, known.start)


def fill(chunk: Tensor, kv: KV) -> None:
    """Copies the layers into a chunk's tensor of their geometry."""
    for index, (layer, size) in enumerate(zip(kv.layers, Geometry.of(kv).layers, strict=True)):
        for view, side in zip(_sides(chunk, index, size), (layer.keys, layer.values), strict=True):
            view.copy_(side)


def _sides(chunk: Tensor, layer: int, size: LayerGeometry) -> tuple[Tensor, Tensor]:
    """A layer's keys [H, T, D] and values [H, T, Dv], as views of the chunk."""
    heads, channels = size.keys
    if chunk.ndim == 4:
        keys, values = (plane[layer].view(-1, heads, channels) for plane in chunk)
    else:
        rows = chunk[layer].view(size.tokens, heads, -1)
        keys, values = rows[..., :channels], rows[..., channels:]
    return keys.transpose(0, 1), values.transpose(0, 1)
