"""The score from statistics of queries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.inputs import QUERY_COVARIANCE, QUERY_MEAN, by_group, read
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload


def expected_attention(
    layer: LayerKV,
    inputs: Payload,
    rope: Rope | None,
    future: int = 512,
    sinks: int = 4,
    epsilon: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """The weight that later queries are expected to give, times the norm of the value (Expected Attention: Devoto et al.,
    2025, arXiv 2510.00636).

    Queries at the ``future`` positions after the segment are taken as normal, with the segment's mean and covariance, turned
    by the mean of these positions' rotations; ``rope`` is the layer's, None where keys are not rotated. A weight before
    the softmax is then lognormal: its mean is exp(k·μ ``scale`` + kᵀΣk ``scale``² / 2), by default with ``scale`` = 1/√D.
    Softmax over tokens, the mean over the query heads of a key head, plus ``epsilon``, times ‖v‖₂. Tokens at positions
    below ``sinks`` are kept and left out of the softmax. Checked against kvpress, by the paper's authors.
    """
    keys, channels = layer.keys.float(), layer.keys.shape[-1]
    scale = 1 / math.sqrt(channels) if scale is None else scale
    start = int(layer.positions[-1]) + 1 if layer.positions.numel() else 0
    turn = mean_rotation(rope, range(start, start + future), channels).to(keys.device)
    mean = by_group(read(inputs, QUERY_MEAN, layer) @ turn.T, len(keys))
    covariance = by_group(turn @ read(inputs, QUERY_COVARIANCE, layer) @ turn.T, len(keys))
    exponents = torch.einsum("hgd,htd->hgt", mean, keys) * scale
    for group in range(mean.shape[1]):  # One at a time: [H, T, D] fits where [Q, T, D] may not.
        exponents[:, group] += ((keys @ covariance[:, group]) * keys).sum(-1) * (scale**2 / 2)
    first = layer.positions < sinks
    weights = exponents.masked_fill(first, -torch.inf).softmax(-1).mean(1)
    scores = (weights + epsilon) * layer.values.float().square().sum(-1).sqrt()
    return scores.masked_fill(first, torch.inf)


def mean_rotation(rope: Rope | None, positions: range, channels: int) -> Tensor:
    """The mean over ``positions`` of the matrices [D, D] that turn a column of ``channels`` entries by ``rope``."""
    turn = torch.eye(channels)
    if rope is None or not rope.inv_freq:
        return turn
    angles = torch.tensor(positions).double()[:, None] * torch.tensor(rope.inv_freq).double()
    cos, sin = ((f(angles).mean(0) * rope.scaling).float() for f in (torch.cos, torch.sin))
    pairs = torch.arange(2 * len(rope.inv_freq))
    first, second = pairs.view(2, -1) if rope.layout == "half" else pairs.view(-1, 2).T
    first, second = first + rope.start, second + rope.start
    turn[first, first] = turn[second, second] = cos
    turn[first, second], turn[second, first] = -sin, sin
    return turn
