"""Scores from the weights that the segment's last tokens give."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from kvtool.codecs.errors import CodecError
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.inputs import WINDOW_WEIGHTS, by_group, read
from kvtool.codecs.spec import Payload


def snapkv(layer: LayerKV, inputs: Payload, kernel: int = 5, pooling: str = "mean") -> Tensor:
    """The mean weight that the window gives a token, pooled over neighbours (SnapKV: Li et al., 2024, arXiv 2404.14469).

    ``kernel`` tokens, an odd number, are pooled by their ``pooling``: "mean", which counts zeros past the ends, or "max". The
    window itself is kept. The authors' code has a cache for each query head; the mean over those that share a key head is
    taken here, as in kvpress and AdaKV. Checked against kvpress, and against the authors' code.
    """
    weights = read(inputs, WINDOW_WEIGHTS, layer)
    window, heads = weights.shape[1], layer.keys.shape[0]
    before = by_group(weights, heads)[..., : layer.keys.shape[1] - window].mean((1, 2))
    return _window_kept(_pooled(before, kernel, pooling), window)


def corm(layer: LayerKV, inputs: Payload) -> Tensor:
    """The largest weight that a token receives from the window, times the number of tokens that the query sees (CORM: Dai et
    al., 2024, arXiv 2404.15949).

    The paper keeps what any recent query gives more than an equal share, which is a score of 1 or more, and so has no
    budget; here the budget cuts. The window is kept. The largest over the query heads of a key head is taken: what any
    of them found important. Not checked against the authors' code, of which none was found.
    """
    weights = read(inputs, WINDOW_WEIGHTS, layer)
    window, heads = weights.shape[1], layer.keys.shape[0]
    before = (weights * _visible(layer, window)[:, None])[..., : layer.keys.shape[1] - window]
    shares = by_group(before, heads)
    largest = shares.amax((1, 2)) if shares.numel() else shares.new_zeros(heads, 0)
    return _window_kept(largest, window)


def scissorhands(layer: LayerKV, inputs: Payload) -> Tensor:
    """Minus the number of the window's queries that give a token less than an equal share (Scissorhands: Liu et al., 2023,
    arXiv 2305.17118).

    An equal share is one over the number of tokens that the query sees. The mean over the query heads of a key head is taken.
    The paper counts over 400 queries, again each time that the cache is full; here it is the window, once. Of tokens with
    equal counts the first are kept. Not checked against the authors' code, of which none was found; VATP's code takes the
    mean weight over the last 400 queries in its place.
    """
    weights = read(inputs, WINDOW_WEIGHTS, layer)
    (heads, tokens), window = layer.keys.shape[:2], weights.shape[1]
    small = weights * _visible(layer, window)[:, None] < 1
    # A token is not judged by queries before it.
    small &= torch.ones(window, tokens, dtype=torch.bool, device=weights.device).tril(tokens - window)
    return -by_group(small.float(), heads).sum(2).mean(1)


def a2sf(layer: LayerKV, inputs: Payload, forgetting: float = 0.95) -> Tensor:
    """The weights that the window gives a token, the earlier the query, the less it counts (A2SF: Jo and Shin, 2024, arXiv
    2407.20485).

    Each query's weights count ``forgetting`` times those of the query after it, which is what the factor comes to that is
    applied at each step. The paper sums over all queries; those before a window of 32 count 0.2 with the default, which is
    that of the authors' example, and less with the paper's lower ones. The mean over the query heads of a key head has the
    order of the sum in the authors' code. Checked against that code.
    """
    weights = read(inputs, WINDOW_WEIGHTS, layer)
    ages = torch.arange(weights.shape[1] - 1, -1, -1, dtype=torch.float32, device=weights.device)
    summed = torch.einsum("qwt,w->qt", weights, torch.as_tensor(forgetting, device=ages.device) ** ages)
    return by_group(summed, layer.keys.shape[0]).mean(1)


def keyformer(layer: LayerKV, inputs: Payload, temperature: float = 1.0, seed: int = 0) -> Tensor:
    """The window's weights with Gumbel noise on what the softmax is over, summed (Keyformer: Adnan et al., 2024, arXiv
    2403.09054).

    The logarithm of a weight is what the softmax was over, up to a constant for each query that a second softmax takes away.
    The authors' code sums over all queries of the prompt, at a ``temperature`` of 1, and lets that rise to 2 while it
    generates, which is after this. The noise is that of ``seed``. The mean over the query heads of a key head is taken; the
    authors' models share none. Checked against that code.
    """
    weights = read(inputs, WINDOW_WEIGHTS, layer)
    draws = torch.empty(weights.shape).exponential_(generator=torch.Generator().manual_seed(seed))
    noisy = (weights.log() - draws.log().to(weights.device)) / temperature
    # A query that sees none of the segment's tokens has no sum to divide by.
    return by_group(noisy.softmax(-1).nan_to_num(0).sum(1), layer.keys.shape[0]).mean(1)


def cake(layer: LayerKV, inputs: Payload, gamma: float = 200.0, kernel: int = 5) -> Tensor:
    """The mean weight that the window gives a token, and ``gamma`` times its variance over the window, pooled (CAKE: Qin et
    al., 2025, arXiv 2503.12491).

    The window is kept. The mean over the query heads of a key head is taken, as in the authors' code. Its budgets for layers
    are ``cake_preference``. Checked against that code.
    """
    weights = read(inputs, WINDOW_WEIGHTS, layer)
    window, heads = weights.shape[1], layer.keys.shape[0]
    before = weights[..., : layer.keys.shape[1] - window]
    scores = before.mean(1) + gamma * _variance(before)
    return _window_kept(by_group(_pooled(scores, kernel), heads).mean(1), window)


def cake_preference(layer: LayerKV, inputs: Payload, tau1: float = 1.0, tau2: float = 1.0) -> float:
    """How much of the cache the layer should have, for ``budgets.layers.cake`` (CAKE: Qin et al., 2025, arXiv 2503.12491).

    The entropy of the window's weights to the power 1 / ``tau1``, times their variance over the window to the power 1 /
    ``tau2``, both summed over query heads and tokens before the window. The authors tune both powers for each model, from 0.4
    to 2.3; the defaults are their code's. Checked against that code.
    """
    weights = read(inputs, WINDOW_WEIGHTS, layer)
    before = weights[..., : layer.keys.shape[1] - weights.shape[1]]
    entropy = -(before * (before + 1e-10).log()).sum()
    return float(entropy.clamp(min=0) ** (1 / tau1) * _variance(before).sum() ** (1 / tau2))


def _variance(weights: Tensor) -> Tensor:
    """The variance of ``weights`` [Q, W, N] over W, divided by W - 1; none of a single query."""
    n_queries, window, tokens = weights.shape
    return weights.var(1) if window > 1 and tokens else weights.new_zeros(n_queries, tokens)


def _visible(layer: LayerKV, window: int) -> Tensor:
    """[W] float32: the number of tokens that each of the window's queries sees, the prefix's among them."""
    return layer.positions[len(layer.positions) - window :].float() + 1


def _pooled(scores: Tensor, kernel: int, pooling: str = "mean") -> Tensor:
    """``scores`` [H, N], each the mean or the largest of ``kernel`` around it."""
    pools: dict[str, Callable[..., Tensor]] = {"mean": avg_pool1d, "max": max_pool1d}
    if kernel < 1 or kernel % 2 == 0 or pooling not in pools:
        raise CodecError(f"pooling is {pooling!r} of {kernel} tokens, expected mean or max of an odd number")
    return pools[pooling](scores, kernel, 1, kernel // 2) if scores.numel() else scores


def _window_kept(scores: Tensor, window: int) -> Tensor:
    """``scores`` [H, T - W] with the window's tokens after them, which come before all others."""
    return torch.cat([scores, scores.new_full((len(scores), window), torch.inf)], 1)
