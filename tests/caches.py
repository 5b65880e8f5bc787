"""Comparisons of caches: of transformers' own, of kvtool's, and of stored keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import kvtool


def sides(cache: Any) -> list[Tensor]:
    """Keys and values of every layer, in turn."""
    return [states for layer in cache.layers for states in (layer.keys, layer.values)]


def same(a: Any, b: Any, tokens: Any = slice(None)) -> bool:
    """Whether both hold the same bits, at ``tokens``."""
    pairs = zip(sides(a), sides(b), strict=True)
    return all(torch.equal(x[..., tokens, :], y[..., tokens, :]) for x, y in pairs)


def differences(cache: Any, expected: Any) -> list[float]:
    """The largest difference of each layer's keys and values, relative to the largest element."""
    pairs = list(zip(sides(cache), sides(expected), strict=True))
    assert all(x.shape == y.shape for x, y in pairs)
    return [float((x - y).abs().max() / y.abs().max().clamp(min=1e-30)) for x, y in pairs]


def assert_close(cache: Any, expected: Any, *, atol: float = 1e-4) -> None:
    for x, y in zip(sides(cache), sides(expected), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=atol)


@torch.no_grad()
def full_prefill(model: kvtool.Model, token_ids: Any) -> DynamicCache:
    """The cache that transformers alone makes; without a config it keeps all tokens in sliding-window layers too."""
    cache = DynamicCache()
    model.model(torch.as_tensor(token_ids)[None], past_key_values=cache, use_cache=True)
    return cache


def eager_prefill(model: kvtool.Model, token_ids: Tensor) -> tuple[DynamicCache, list[Tensor]]:
    """The cache, and each layer's weights [Q, N, N], as transformers' own eager attention reports them."""
    before, cache = model.model.config._attn_implementation, DynamicCache()
    model.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model.model(token_ids[None], past_key_values=cache, output_attentions=True)
    finally:
        model.model.set_attn_implementation(before)
    return cache, [weights[0] for weights in out.attentions]
