"""Dequantization of min–max groups."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor) -> None:
    """Write ``codes * scale + zero`` into ``out``: the contract is ``kvtool.kernels.reference.dequantize``.

    Three passes in place over a block that stays in cache beat torch's ``addcmul``, which does not vectorise
    once both scale and zero are broadcast along the last axis.
    """
    whole = codes.shape[axis] // group
    rest = codes.shape[axis] - whole * group
    target = out if out.dtype == torch.float32 else torch.empty(out.shape, device=out.device)
    target.copy_(codes)
    shape = [*target.shape[:axis], whole, group, *target.shape[axis + 1 :]]
    blocks = target.narrow(axis, 0, whole * group).view(shape)
    _scale_and_shift(blocks, scale.narrow(axis, 0, whole), zero.narrow(axis, 0, whole), axis)
    if rest:
        block = target.narrow(axis, whole * group, rest).unsqueeze(axis)
        _scale_and_shift(block, scale.narrow(axis, whole, 1), zero.narrow(axis, whole, 1), axis)
    if target is not out:
        out.copy_(target)


def _scale_and_shift(blocks: Tensor, scale: Tensor, zero: Tensor, axis: int) -> None:
    blocks.mul_(scale.float().unsqueeze(axis + 1)).add_(zero.float().unsqueeze(axis + 1))
