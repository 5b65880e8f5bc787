"""Attention to packed tokens, by products of torch's: they run on any device, and gradients pass through them."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.reference import Packed


def packed_attention(query: Tensor, packed: Packed, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp: the contract is ``kvtool.kernels.reference.packed_attention``."""
    # Query heads that share a key head are rows of one product, without repeating keys.
    rows = query.flatten(1, 3)
    output = rows.new_zeros((*rows.shape[:2], packed.values.shape[1]), dtype=torch.float32)
    total = torch.zeros_like(output[..., :1])
    largest = torch.full_like(total, torch.finfo(total.dtype).min)
    # Most questions see the whole document.
    sees_all = bool(mask.all())
    # One head at a time: its scores stay in the processor's cache.
    for number, head in enumerate(packed.heads):
        if not packed.lengths[number]:
            continue
        keys, values = packed.keys[head], packed.values[head]
        scores = (rows[number] @ keys.mT).float().mul_(scaling)
        if packed.bias is not None:
            scores += packed.bias[head]
        if not sees_all:
            hidden = ~mask[:, None, :, packed.places[head]]
            scores.view(*query.shape[1:4], -1).masked_fill_(hidden, -torch.inf)
        # Where nothing is seen, the largest score is -inf, from which nothing can be subtracted.
        largest[number] = scores.detach().amax(-1, keepdim=True).clamp_(min=largest[number])
        weights = scores.sub_(largest[number]).exp_()
        total[number] = weights.sum(-1, keepdim=True)
        output[number] = weights.to(values.dtype) @ values
    # What is seen has a sum of at least 1, that of the largest score.
    output = output / total.clamp(min=1)
    return output.view(*query.shape[:4], -1), (total.log() + largest).view(query.shape[:4])
