"""Dequantization of min–max groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from kvtool.kernels.cpu.jit import compiled

Vector = np.ndarray[tuple[int], np.dtype[Any]]
Matrix = np.ndarray[tuple[int, int], np.dtype[Any]]


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor) -> None:
    """Write ``codes * scale + zero`` into ``out``: the contract is ``kvtool.kernels.reference.dequantize``."""
    if not out.numel():
        return
    channels = out.shape[2]
    group = min(group, out.shape[axis])
    missing = scale.shape[2] * group - channels if axis == 2 else 0
    if missing:
        codes = pad(codes, (0, missing))
    # The loops want contiguous float32 and whole groups of channels. What is otherwise goes through a block of
    # one head, copied while it is still in cache.
    direct = out.dtype == torch.float32 and out[0].is_contiguous() and not missing
    block = None if direct else torch.empty(codes.shape[1:])
    sources = [t.contiguous().numpy() for t in (codes, scale.float(), zero.float())]
    for head, (c, s, z) in enumerate(zip(*sources, strict=True)):
        target = out[head] if block is None else block
        if axis == 1:
            _along_tokens(c, s, z, group, target.numpy())
        else:
            _along_channels(c.reshape(-1, group), s.ravel(), z.ravel(), target.view(-1, group).numpy())
        if block is not None:
            out[head].copy_(block[:, :channels])


@compiled
def _along_tokens(codes: Matrix, scale: Matrix, zero: Matrix, group: int, out: Matrix) -> None:
    for g in range(len(scale)):
        for t in range(g * group, min((g + 1) * group, len(out))):
            for d in range(out.shape[1]):
                out[t, d] = np.float32(codes[t, d]) * scale[g, d] + zero[g, d]


@compiled
def _along_channels(codes: Matrix, scale: Vector, zero: Vector, out: Matrix) -> None:
    for g in range(len(out)):
        for i in range(out.shape[1]):
            out[g, i] = np.float32(codes[g, i]) * scale[g] + zero[g]
