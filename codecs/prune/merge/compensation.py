"""One token for all those that a head drops."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV


def compensated(layer: LayerKV, mask: Tensor) -> tuple[LayerKV, Tensor]:
    """The layer and the mask with a token more in each head that drops some (RazorAttention: Tang et al., 2024, arXiv
    2407.15891).

    It has the mean of the dropped tokens' keys, the mean of their values, and a bias of the logarithm of their number, as
    if each had the mean key. It stands where the first of them stood. Each head keeps one token more than its budget.
    """
    dropped = ~mask
    numbers = dropped.sum(1)
    parts = dropped.float() / numbers.clamp(min=1)[:, None]
    first = dropped & (dropped.cumsum(1) == 1)

    def mean(x: Tensor) -> Tensor:
        means = (parts[:, None] @ x.float()).to(x.dtype)
        return torch.where(first[..., None], means, x)

    bias = torch.zeros(mask.shape, device=mask.device) if layer.bias is None else layer.bias
    bias = torch.where(first, numbers.float().log()[:, None], bias)
    return dataclasses.replace(
        layer, keys=mean(layer.keys), values=mean(layer.values), bias=bias
    ), mask | first
