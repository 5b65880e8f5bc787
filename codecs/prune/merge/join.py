"""Weighted means of tokens."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV


def join(layer: LayerKV, targets: Tensor, weights: Tensor) -> LayerKV:
    """``layer`` with each token that others join replaced by the mean of these and itself, by ``weights`` [H, T].

    ``targets`` [H, T] int64 has the token that each joins, its own index for one that joins none. Tokens of weight zero join
    nothing. Tokens that none joins keep their bits.
    """
    places = torch.arange(targets.shape[1], device=targets.device)
    joins = (targets != places) & (weights > 0)
    parts = weights * (joins | (targets == places))
    totals = torch.zeros_like(parts).scatter_add_(1, targets, parts)
    touched = torch.zeros_like(parts).scatter_add_(1, targets, joins.to(parts.dtype)) > 0

    def mean(x: Tensor) -> Tensor:
        index = targets[..., None].expand_as(x)
        sums = torch.zeros_like(x, dtype=torch.float32).scatter_add_(1, index, x.float() * parts[..., None])
        return torch.where(touched[..., None], (sums / totals[..., None]).to(x.dtype), x)

    return dataclasses.replace(layer, keys=mean(layer.keys), values=mean(layer.values))
