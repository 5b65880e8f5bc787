"""Attention to packed tokens, by products of torch's: they run on any device, and gradients pass through them."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.reference import Packed


def packed_attention(query: Tensor, packed: Packed, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp: the contract is ``kvtool.kernels.reference.packed_attention``."""
    rows, lengths = query.flatten(1, 3), list(packed.lengths)
    heads = zip(
        # Query heads that share a key head are rows of one product, without repeating keys.
        rows.unbind(0),
        torch.split(packed.keys, lengths),
        torch.split(packed.values, lengths),
        torch.split(packed.places, lengths),
        [None] * len(lengths) if packed.bias is None else torch.split(packed.bias, lengths),
        strict=True,
    )
    # Most questions see the whole document.
    sees_all = bool(mask.all())
    attended, largest_scores, largest_weights = [], [], []
    # One head at a time: its scores stay in the processor's cache.
    for row, keys, values, places, bias in heads:
        scores = (row @ keys.mT).float().mul_(scaling)
        if bias is not None:
            scores += bias
        if not sees_all:
            hidden = ~mask[:, None, :, places]
            scores.view(*query.shape[1:4], -1).masked_fill_(hidden, -torch.inf)
        weights = scores.softmax(-1)
        if not sees_all:
            # Where nothing is seen, softmax divides by zero.
            weights = weights.nan_to_num(0)
        attended.append(weights.to(values.dtype) @ values)
        if len(keys):
            largest_scores.append(scores.amax(-1))
            largest_weights.append(weights.amax(-1))
        else:
            largest_scores.append(scores.new_full((len(row),), -torch.inf))
            largest_weights.append(scores.new_ones(len(row)))
    # A weight is the exponential of its score minus the log-sum-exp.
    smallest = torch.finfo(torch.float32).tiny
    total = torch.stack(largest_scores) - torch.stack(largest_weights).clamp(min=smallest).log()
    return torch.stack(attended).float().view(*query.shape[:4], -1), total.view(query.shape[:4])
