"""Scores from the weights that the segment's last tokens give."""

from __future__ import annotations

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


def _pooled(scores: Tensor, kernel: int, pooling: str = "mean") -> Tensor:
    """``scores`` [H, N], each the mean or the largest of ``kernel`` around it."""
    pools = {"mean": avg_pool1d, "max": max_pool1d}
    if kernel < 1 or kernel % 2 == 0 or pooling not in pools:
        raise CodecError(f"pooling is {pooling!r} of {kernel} tokens, expected mean or max of an odd number")
    return pools[pooling](scores, kernel, 1, kernel // 2) if scores.numel() else scores


def _window_kept(scores: Tensor, window: int) -> Tensor:
    """``scores`` [H, T - W] with the window's tokens after them, which come before all others."""
    return torch.cat([scores, scores.new_full((len(scores), window), torch.inf)], 1)
