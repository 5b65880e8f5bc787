"""Caches that were pruned at random, and the attention that they must have: dense, with a mask for each head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import kvtool
from kvtool.codecs import LayerKV
from kvtool.engines import transformers as engine
from kvtool.engines.attention.override import family_attention, override_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.ragged import pruned_layer


def dense_cache(model: kvtool.Model, ids: Sequence[int]) -> DocumentCache:
    """The cache of ``ids``, with all tokens."""
    cache = engine.new_cache(model, len(ids))
    engine.feed(model, ids, cache)
    cache.token_ids = torch.tensor(ids)
    return cache


def keep_some(cache: DocumentCache, share: float = 0.4) -> list[Tensor]:
    """Which tokens to keep, bool [H, N] for each layer: at random, and never the same number in two heads."""
    return [torch.rand(x.keys.shape[1], x.keys.shape[2]) < share for x in cache.layers]


def pack(layer: LayerKV, kept: Tensor) -> LayerKV:
    """The tokens of a dense ``layer`` that ``kept`` [H, T] says, packed."""
    bias = None if layer.bias is None else layer.bias[kept][None]
    positions = layer.positions.expand(kept.shape)[kept]
    lengths = tuple(kept.sum(1).tolist())
    return LayerKV(layer.keys[kept][None], layer.values[kept][None], positions, lengths, bias)


def prune(
    cache: DocumentCache,
    kept: Sequence[Tensor | None],
    biases: Sequence[Tensor] | None = None,
    prefix: int = 5,
) -> DocumentCache:
    """``cache`` with the tokens that ``kept`` says of each layer, and all where that is None.

    Its parts are a dense prefix, whose tokens are kept, and two packed segments. ``biases`` are [H, N] of each layer.
    """
    n_tokens = cache.get_seq_length()
    pruned = DocumentCache(len(cache.layers), token_ids=cache.token_ids)
    for index, (layer, some) in enumerate(zip(cache.layers, kept, strict=True)):
        if some is None:
            pruned.layers[index] = layer
            continue
        bias = None if biases is None else biases[index]
        whole = LayerKV(layer.keys[0], layer.values[0], torch.arange(n_tokens), bias=bias)
        middle = (prefix + n_tokens) // 2
        parts = [whole.of(range(prefix))]
        for part in (range(prefix, middle), range(middle, n_tokens)):
            parts.append(pack(whole.of(part), some[:, part.start : part.stop]))
        pruned.layers[index] = pruned_layer(parts, n_tokens)
    return pruned


@contextmanager
def hiding(model: kvtool.Model, kept: Sequence[Tensor | None], prefix: int = 5) -> Iterator[None]:
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
            seen[:, prefix : some.shape[1]] = some[:, prefix:]
            group = query.shape[1] // len(some)
            mask = mask & seen.repeat_interleave(group, 0)[None, :, None]
        return family_attention("eager", module, query, key, value, mask, scaling, **options)

    with override_attention(model, attention, AssertionError()):
        yield
