"""Attention to packed tokens, by products of torch's: they run on any device, and gradients pass through them."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.reference import Packed


def packed_attention(
    query: Tensor, packed: Packed, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Attention to packed and dense tokens: the contract is ``kvtool.kernels.reference.packed_attention``."""
    n_dense, lengths = key.shape[2], list(packed.lengths)
    n_places = mask.shape[2] - n_dense
    # Query heads that share a key head are rows of one product, without repeating keys.
    rows = query.flatten(2, 3)
    heads = zip(
        rows.flatten(1, 2).unbind(0),
        torch.split(packed.keys, lengths),
        torch.split(packed.values, lengths),
        torch.split(packed.places, lengths),
        [None] * len(lengths) if packed.bias is None else torch.split(packed.bias, lengths),
        (rows @ key.mT).flatten(1, 2).unbind(0),
        strict=True,
    )
    sees_all = bool(mask.all())
    # Most questions see the whole document, if not all of one another.
    sees_places = sees_all or bool(mask[..., :n_places].all())
    attended, dense_weights = [], []
    # One head at a time: its scores stay in the processor's cache.
    for head_rows, keys, values, places, bias, dense in heads:
        length = len(keys)
        scores = torch.cat([head_rows.mm(keys.mT), dense], 1).float().mul_(scaling)
        if bias is not None:
            scores[:, :length] += bias
        if not sees_all:
            by_query = scores.view(*query.shape[1:4], length + n_dense)
            by_query[..., length:].masked_fill_(~mask[:, None, :, n_places:], -torch.inf)
            if not sees_places:
                by_query[..., :length].masked_fill_(~mask[:, None, :, places], -torch.inf)
        weights = scores.softmax(1).to(values.dtype)
        attended.append(weights[:, :length].mm(values))
        dense_weights.append(weights[:, length:])
    output = torch.stack(dense_weights).view(*rows.shape[:3], n_dense) @ value
    output += torch.stack(attended).view(output.shape)
    return output.view(*query.shape[:4], value.shape[3])
