"""KL, dNLL and top-1 against distributions whose distances are known, and errors of a cache whose noise is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import kvtool
from kvtool.measurement.distortion import cache_error, distortion


def test_kl_of_two_coins() -> None:
    p, q = torch.tensor([[0.5, 0.5]] * 3), torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    result = distortion(p.log(), q.log(), [0, 0, 1])
    each = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert result.kl == pytest.approx([each, 0.0, each])
    assert result.dnll == pytest.approx([-math.log(0.9 / 0.5), 0.0, -math.log(0.9 / 0.5)])
    assert sum(result.top1) >= 1


def test_kl_of_discrete_normals_is_that_of_normals() -> None:
    """KL(N(a, s²) ‖ N(b, s²)) = (a - b)² / 2s², here on a grid fine enough."""
    x = torch.arange(-2000, 2001, dtype=torch.float64) / 100
    a, b, s = 0.3, 1.7, 2.0
    p, q = (-((x - m) ** 2) / (2 * s * s) for m in (a, b))
    (kl,) = distortion(p[None].float(), q[None].float(), [2000]).kl
    assert kl == pytest.approx((a - b) ** 2 / (2 * s * s), rel=1e-5)


def test_many_tokens_agree_with_numpy() -> None:
    raw, restored = torch.randn(200, 50), torch.randn(200, 50)
    targets = torch.randint(0, 50, (200,)).tolist()
    result = distortion(raw, restored, targets)
    powers = [np.exp(logits.double().numpy()) for logits in (raw, restored)]
    p, q = (each / each.sum(1, keepdims=True) for each in powers)
    rows = np.arange(200)
    np.testing.assert_allclose(result.kl, (p * np.log(p / q)).sum(1), rtol=1e-9)
    dnll = np.log(p[rows, targets]) - np.log(q[rows, targets])
    np.testing.assert_allclose(result.dnll, dnll, rtol=1e-9, atol=1e-12)
    assert result.top1 == (p.argmax(1) == q.argmax(1)).astype(float).tolist()


def test_the_same_logits_give_nothing_at_all() -> None:
    logits = torch.randn(100, 300) * 30
    result = distortion(logits, logits.clone(), [0] * 100)
    assert result.kl == [0.0] * 100
    assert result.dnll == [0.0] * 100
    assert result.top1 == [1.0] * 100


def test_words_that_are_ruled_out_add_nothing() -> None:
    raw = torch.tensor([[0.0, 0.0, -math.inf]])
    (kl,) = distortion(raw, torch.zeros(1, 3), [0]).kl
    assert kl == pytest.approx(math.log(1.5))


def filled(layers: int = 3, heads: int = 2, tokens: int = 400) -> kvtool.DocumentCache:
    cache = kvtool.DocumentCache(layers)
    for layer in range(layers):
        cache.update(torch.randn(1, heads, tokens, 16), torch.randn(1, heads, tokens, 8), layer)
    return cache


def test_known_noise_is_found_where_it_was_put() -> None:
    raw, noisy = filled(), kvtool.DocumentCache(3)
    for index, layer in enumerate(raw.layers):
        keys, values = layer.keys.clone(), layer.values.clone()
        if index == 1:
            keys[:, 1] += 0.1 * torch.randn_like(keys[:, 1])
            values[:, 0] *= 0.5
        noisy.update(keys, values, index)
    result = cache_error(raw, noisy, start=50)
    share = {side: [[wrong / whole for wrong, whole in heads] for heads in result[side]] for side in result}
    assert share["keys"] == [[0, 0], [0, pytest.approx(0.01, rel=0.1)], [0, 0]]
    assert share["values"] == [[0, 0], [pytest.approx(0.25), 0], [0, 0]]


def test_the_prefix_is_not_looked_at() -> None:
    raw, other = filled(), kvtool.DocumentCache(3)
    for index, layer in enumerate(raw.layers):
        keys = layer.keys.clone()
        keys[:, :, :50] = 0
        other.update(keys, layer.values.clone(), index)
    assert all(wrong == 0 for heads in cache_error(raw, other, 50)["keys"] for wrong, _ in heads)
    assert all(wrong > 0 for heads in cache_error(raw, other, 0)["keys"] for wrong, _ in heads)


def test_missing_tokens_have_no_error() -> None:
    assert cache_error(filled(tokens=40), filled(tokens=30), 0) == {}
