"""Dequantization of min–max groups."""

from __future__ import annotations

from torch import Tensor

import triton.language as tl
from kvtool.kernels.triton.jit import BLOCK, OPTIONS, blocks, kernel


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor) -> None:
    """Write ``codes * scale + zero`` into ``out``: the contract is ``kvtool.kernels.reference.dequantize``."""
    if not out.numel():
        return
    heads, tokens, channels = out.shape
    grid = blocks(tokens * channels), heads
    sources = (t.contiguous() for t in (codes, scale, zero))
    sizes = tokens, channels, scale.shape[axis], group
    dequantize_head[grid](*sources, out, *sizes, *out.stride(), axis, BLOCK, **OPTIONS)


@kernel
def dequantize_head(
    codes: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    out: tl.tensor,
    tokens: int,
    channels: int,
    groups: int,
    group: int,
    head_stride: int,
    token_stride: int,
    channel_stride: int,
    AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tokens * channels
    token, channel = i // channels, i % channels
    if AXIS == 1:
        g = (head * groups + token // group) * channels + channel
    else:
        g = (head * tokens + token) * groups + channel // group
    code = tl.load(codes + head * tokens * channels + i, mask=inside, other=0).to(tl.float32)
    s = tl.load(scale + g, mask=inside, other=0).to(tl.float32)
    z = tl.load(zero + g, mask=inside, other=0).to(tl.float32)
    place = head * head_stride + token.to(tl.int64) * token_stride + channel * channel_stride
    tl.store(out + place, code * s + z, mask=inside)
