"""Rotary position embeddings."""

from __future__ import annotations

from torch import Tensor

import triton.language as tl
from kvtool.kernels.reference import Layout
from kvtool.kernels.triton.jit import BLOCK, OPTIONS, blocks, kernel


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, out: Tensor) -> None:
    """Write ``x`` rotated into ``out``: the contract is ``kvtool.kernels.reference.rotate``."""
    tokens, half = cos.shape
    out[..., 2 * half :] = x[..., 2 * half :]
    if not len(x) * tokens * half:
        return
    grid, tensors = (blocks(tokens * half), len(x)), (x, cos.contiguous(), sin.contiguous(), out)
    strides = *x.stride(), *out.stride()
    rotate_head[grid](*tensors, tokens, half, *strides, layout == "interleaved", BLOCK, **OPTIONS)


@kernel
def rotate_head(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    tokens: int,
    half: int,
    x_head_stride: int,
    x_token_stride: int,
    x_channel_stride: int,
    out_head_stride: int,
    out_token_stride: int,
    out_channel_stride: int,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tokens * half
    token, pair = (i // half).to(tl.int64), i % half
    if INTERLEAVED:
        first = 2 * pair
        second = first + 1
    else:
        first = pair
        second = pair + half
    c = tl.load(cos + i, mask=inside, other=0)
    s = tl.load(sin + i, mask=inside, other=0)
    x += head * x_head_stride + token * x_token_stride
    a = tl.load(x + first * x_channel_stride, mask=inside, other=0).to(tl.float32)
    b = tl.load(x + second * x_channel_stride, mask=inside, other=0).to(tl.float32)
    out += head * out_head_stride + token * out_token_stride
    tl.store(out + first * out_channel_stride, a * c - b * s, mask=inside)
    tl.store(out + second * out_channel_stride, b * c + a * s, mask=inside)
