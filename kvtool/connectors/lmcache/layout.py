"""LMCache's chunk of a cache, one tensor, as keys and values of layers; and back.

``[2, L, T, C]`` has keys and values of L layers and T tokens, the channels of all heads in a row, as LMCache's
``KV_2LTD``. ``[L, T, C]`` has one plane: latents (MLA), or keys and values in one. Keys are rotated (RoPE), as an engine
has them.
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


def geometry(shape: Sequence[int], dtype: torch.dtype, heads: int) -> Geometry:
    """The geometry of a chunk of this shape. Raises ``CodecError`` for a shape of another kind."""
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 2) or 0 in shape:
        raise CodecError(
            f"chunk: its shape is {list(shape)}, expected [2, layers, tokens, channels] or without the 2"
        )
    layers, tokens, channels = shape[-3:]
    if channels % heads:
        raise CodecError(f"chunk: its {channels} channels are not those of {heads} heads")
    keys = heads, channels // heads
    values = keys if len(shape) == 4 else (heads, 0)
    return Geometry(dtype, tokens, (LayerGeometry(tokens, keys, values),) * layers)


def to_kv(chunk: Tensor, heads: int, tokens: ChunkTokens | None) -> KV:
    """The chunk's layers, as views. Where its tokens are not known, positions count from 0 and say nothing."""
    sizes = geometry(chunk.shape, chunk.dtype, heads)
    known = tokens or ChunkTokens(torch.zeros(sizes.n_tokens, dtype=torch.int64), 0)
    if len(known.token_ids) != sizes.n_tokens:
        raise CodecError(f"chunk: has {sizes.n_tokens} tokens, expected {len(known.token_ids)}")
    positions = torch.arange(known.start, known.start + sizes.n_tokens)
    planes = chunk if chunk.ndim == 4 else torch.stack([chunk, chunk])
    layers = [
        LayerKV(
            _by_head(keys, *size.keys),
            _by_head(values[:, : size.values[0] * size.values[1]], *size.values),
            positions,
        )
        for keys, values, size in zip(planes[0], planes[1], sizes.layers, strict=True)
    ]
    return KV(tuple(layers), known.token_ids, known.rope, known.start)


def fill(chunk: Tensor, kv: KV) -> None:
    """Copies the layers into a chunk's tensor of their geometry."""
    planes = chunk if chunk.ndim == 4 else chunk[None]
    for index, layer in enumerate(kv.layers):
        for plane, part in zip(planes, (layer.keys, layer.values), strict=False):
            plane[index].copy_(part.transpose(0, 1).flatten(1))


def _by_head(rows: Tensor, heads: int, channels: int) -> Tensor:
    """[T, H · D] as [H, T, D]."""
    return rows.reshape(len(rows), heads, channels).transpose(0, 1)
