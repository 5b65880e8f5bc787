"""A segment's cache, decoded into the order of pages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtool.artifact.read import Artifact
from kvtool.connectors.daemon_pool import DaemonPool
from kvtool.connectors.reading import LayerSpan, Step, steps
from kvtool.connectors.sglang.pages import Pages
from kvtool.errors import MismatchError


def rows_nbytes(pages: Pages, n_tokens: int) -> int:
    """Bytes of what ``decode`` returns."""
    sides, heads, channels = pages.sizes
    return int(sides * len(pages.layers) * n_tokens * heads * channels * pages.pool.dtype.itemsize)


def decode(parts: Sequence[Artifact], pages: Pages, *, in_pairs: bool = True, threads: int = 1) -> Tensor:
    """Keys and values [sides, layers, T, heads, channels] of ``parts``: the layers and heads that the pool holds.

    ``in_pairs``: in latent attention, SGLang has channels that turn together side by side. Every byte is checked. Raises
    ``MismatchError``, naming the field, for a cache of other sizes than the pool's.
    """
    for part in parts:
        _refuse_other_sizes(part, pages)
    n_tokens = sum(part.contents.geometry.n_tokens for part in parts)
    sides, heads, channels = pages.sizes
    rows = torch.empty(sides, len(pages.layers), n_tokens, heads, channels, dtype=pages.pool.dtype)

    def fill(step: Step) -> None:
        for span in step.spans():
            if span.layer in pages.layers:
                _write(span, rows[:, pages.layers.index(span.layer)], pages, in_pairs)

    needed = [
        step for step in steps(parts, range(n_tokens)) if any(layer in pages.layers for layer in step.layers)
    ]
    with DaemonPool(threads, "decoding") as pool:
        list(pool.map(fill, needed))
    return rows


def _write(span: LayerSpan, rows: Tensor, pages: Pages, in_pairs: bool) -> None:
    places = rows[:, span.start : span.stop]
    if pages.is_latent:
        rank = pages.pool.kv_lora_rank
        places[0, :, :, :rank] = span.keys.transpose(0, 1)
        places[0, :, :, rank:] = (span.interleaved_values() if in_pairs else span.values).transpose(0, 1)
        return
    heads = pages.heads(span.keys.shape[0])
    for place, side in zip(places, (span.keys, span.values), strict=True):
        place.copy_(side[heads.start : heads.stop].transpose(0, 1))


def _refuse_other_sizes(part: Artifact, pages: Pages) -> None:
    geometry, pool = part.contents.geometry, pages.pool
    if geometry.dtype != pool.dtype:
        raise MismatchError(part.path, f"has dtype {geometry.dtype}, SGLang has {pool.dtype}")
    n_layers, stop = len(geometry.layers), pages.layers.stop
    if stop > n_layers or (pages.shard.is_last and stop < n_layers):
        raise MismatchError(part.path, f"has {n_layers} layers, SGLang's pages have {list(pages.layers)}")
    for index in pages.layers:
        layer = geometry.layers[index]
        found = layer.keys[-1], layer.values[-1]
        if pages.is_latent:
            expected = pool.kv_lora_rank, pool.qk_rope_head_dim
        else:
            expected = pool.head_dim, pool.v_head_dim
            pages.heads(layer.keys[0])
        if found != tuple(expected):
            reason = f"layer {index} has keys and values of {found} channels, SGLang's of {tuple(expected)}"
            raise MismatchError(part.path, reason)
