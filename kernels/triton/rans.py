"""Interleaved rANS; the format is in ``kvtool.kernels.reference.rans``."""

from __future__ import annotations

import torch
from torch import Tensor

import triton.language as tl
from kvtool.kernels import cpu
from kvtool.kernels.reference.rans import LOWEST
from kvtool.kernels.triton.jit import kernel
from kvtool.kernels.triton.symbol import symbol_of

WARPS = 1
"""Lanes exchange their words' places in every step, which one warp does without waiting for another."""


def rans_encode(codes: Tensor, cumulative: Tensor, table: Tensor, precision: int, lanes: int) -> Tensor:
    """``codes`` as one block of bytes, made on the CPU: only decoding is ever waited for."""
    block = cpu.rans_encode(codes.cpu(), cumulative.cpu(), table.cpu(), precision, lanes)
    return block.to(codes.device)


def rans_decode(
    stream: Tensor, blocks: Tensor, cumulative: Tensor, table: Tensor, precision: int, lanes: int, out: Tensor
) -> None:
    """Decode ``blocks`` of ``stream`` into ``out``, a program for each; the tables may be on another device.

    Raises ValueError for a block that ``rans_encode`` has not made with these tables, once all are decoded.
    """
    if not len(blocks):
        return
    heads, tokens, channels = out.shape
    levels = cumulative.shape[1] - 1
    whole = torch.empty(len(blocks), dtype=torch.int32, device=out.device)
    sources = (t.to(out.device).contiguous() for t in (stream, blocks, cumulative, table))
    sizes, constants = (
        (heads, tokens, channels, levels),
        (LOWEST, precision, (levels - 1).bit_length(), lanes),
    )
    decode_block[(len(blocks),)](*sources, out, whole, *sizes, *constants, num_warps=WARPS)
    for (first, end, _, _), ended in zip(blocks.tolist(), whole.tolist(), strict=True):
        if not ended:
            raise ValueError(f"a block of {end - first} bytes does not end where it was begun")


@kernel
def decode_block(
    stream: tl.tensor,
    blocks: tl.tensor,
    cumulative: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    whole: tl.tensor,
    heads: int,
    tokens: int,
    channels: int,
    levels: int,
    LOWEST: tl.constexpr,
    PRECISION: tl.constexpr,
    HALVINGS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    block = tl.program_id(0)
    first, end = tl.load(blocks + 4 * block), tl.load(blocks + 4 * block + 1)
    begin, stop = tl.load(blocks + 4 * block + 2), tl.load(blocks + 4 * block + 3)
    count = (stop - begin).to(tl.int32)
    lane = tl.arange(0, LANES)
    # Bytes one by one, since a block may start at any address; never any from outside of it.
    at = first + 4 * lane
    x = tl.full((LANES,), 0, tl.uint32)
    for i in tl.static_range(4):
        byte = tl.load(stream + at + i, mask=(lane < count) & (at + i < end), other=0)
        x |= byte.to(tl.uint32) << (8 * i)
    x = tl.where(lane < count, x, LOWEST)
    following = first + 4 * tl.minimum(count, LANES)
    place = (begin + lane) * channels
    for a in range(heads):
        for b in range(channels):
            bounds = cumulative + tl.load(table + a * channels + b) * (levels + 1)
            for t in range(0, count, LANES):
                inside = lane < count - t
                slot = (x & ((1 << PRECISION) - 1)).to(tl.int32)
                code = symbol_of(bounds, slot, levels, PRECISION, HALVINGS, LANES)
                start = tl.load(bounds + code)
                share = tl.load(bounds + code + 1) - start
                left = share.to(tl.uint32) * (x >> PRECISION) + (slot - start).to(tl.uint32)
                short = (inside & (left < LOWEST)).to(tl.int32)
                at = following + 2 * (tl.cumsum(short, 0) - short)
                there = (short > 0) & (at + 1 < end)
                low = tl.load(stream + at, mask=there, other=0).to(tl.uint32)
                high = tl.load(stream + at + 1, mask=there, other=0).to(tl.uint32)
                left = tl.where(short > 0, left << 16 | high << 8 | low, left)
                x = tl.where(inside, left, x)
                following += 2 * tl.sum(short, 0)
                tl.store(out + place + t * channels + b, code.to(tl.uint8), mask=inside)
        place += tokens * channels
    ended = tl.min((x == LOWEST).to(tl.int32), 0) & (following == end).to(tl.int32)
    tl.store(whole + block, ended)
