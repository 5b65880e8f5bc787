"""Caches that were pruned at random, and the attention that they must have: dense, with a mask for each head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import kvtool
from kvtool.codecs import LayerGeometry, LayerKV
from kvtool.engines import transformers as engine
from kvtool.engines.attention.override import family_attention, override_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.ragged import pruned_layer

PREFIX = 5


def dense_cache(model: kvtool.Model, ids: Sequence[int]) -> DocumentCache:
    """The cache of ``ids``, with all tokens."""
    cache = engine.new_cache(model, len(ids))
    engine.feed(model, ids, cache)
    cache.token_ids = torch.tensor(ids)
    return cache


def keep_some(cache: DocumentCache, share: float = 0.4, *, uniform: bool = False) -> list[Tensor]:
    """Which tokens to keep, bool [H, N] for each layer, at random; ``uniform``: the same ones in all heads of a layer."""
    kept = []
    for layer in cache.layers:
        _, heads, tokens, _ = layer.keys.shape
        kept.append((torch.rand(1 if uniform else heads, tokens) < share).expand(heads, tokens).clone())
    return kept


def pack(layer: LayerKV, kept: Tensor, *, uniform: bool = False) -> LayerKV:
    """The tokens of a dense ``layer`` that ``kept`` [H, T] says: packed, or dense where they are the same in all heads."""
    if uniform:
        same = kept[0]
        return LayerKV(layer.keys[:, same], layer.values[:, same], layer.positions[same])
    bias = None if layer.bias is None else layer.bias[kept][None]
    positions = layer.positions.expand(kept.shape)[kept]
    lengths = tuple(kept.sum(1).tolist())
    return LayerKV(layer.keys[kept][None], layer.values[kept][None], positions, lengths, bias)


def prune(
    cache: DocumentCache,
    kept: Sequence[Tensor | None],
    biases: Sequence[Tensor] | None = None,
    *,
    uniform: bool = False,
) -> DocumentCache:
    """``cache`` with the tokens that ``kept`` says of each layer, and all where that is None.

    Its parts are a dense prefix of ``PREFIX`` tokens, which are kept, and two segments. ``biases`` are [H, N] of each layer.
    """
    n_tokens = cache.get_seq_length()
    pruned = DocumentCache(len(cache.layers), token_ids=cache.token_ids)
    for index, (layer, some) in enumerate(zip(cache.layers, kept, strict=True)):
        if some is None:
            pruned.layers[index] = layer
            continue
        bias = None if biases is None else biases[index]
        whole = LayerKV(layer.keys[0], layer.values[0], torch.arange(n_tokens), bias=bias)
        middle = (PREFIX + n_tokens) // 2
        parts = [whole.of(range(PREFIX))]
        for tokens in (range(PREFIX, middle), range(middle, n_tokens)):
            parts.append(pack(whole.of(tokens), some[:, tokens.start : tokens.stop], uniform=uniform))
        size = LayerGeometry.joined([LayerGeometry.of(part) for part in parts])
        placed = pruned_layer(size, n_tokens, layer.keys.dtype, layer.keys.device)
        for part in parts:
            placed.place(part)
        pruned.layers[index] = placed
    return pruned


@contextmanager
def hiding(model: kvtool.Model, kept: Sequence[Tensor | None]) -> Iterator[None]:
    """Makes ``model`` hide from each head the tokens of its cache that are not ``kept``; the prefix is."""

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scaling: float | None,
        **options: Any,
    ) -> Tensor:
        some = kept[module.layer_idx]
        if some is not None:
            seen = torch.ones(len(some), mask.shape[-1], dtype=torch.bool)
            seen[:, PREFIX : some.shape[1]] = some[:, PREFIX:]
            group = query.shape[1] // len(some)
            mask = mask & seen.repeat_interleave(group, 0)[None, :, None]
        return family_attention("eager", module, query, key, value, mask, scaling, **options)

    with override_attention(model, attention, AssertionError()):
        yield
