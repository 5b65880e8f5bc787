"""Packing of 1- to 8-bit codes; the layout is in ``kvtool.kernels.reference.packing``."""

from __future__ import annotations

import torch
from torch import Tensor

import triton.language as tl
from kvtool.kernels.reference import packed_size, sections
from kvtool.kernels.triton.jit import BLOCK, blocks, kernel


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` [n] uint8, each below ``2 ** bits``, as ``packed_size(n, bits)`` bytes."""
    n = codes.numel()
    packed = torch.empty(packed_size(n, bits), dtype=torch.uint8, device=codes.device)
    codes = codes.contiguous()
    for width, shift, place in sections(n, bits):
        section = packed[place]
        size = len(section)
        pack_section[(blocks(size),)](codes, section, n, size, shift, width, BLOCK)
    return packed


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """The ``n`` codes [n] uint8 that ``pack`` made into ``packed`` [packed_size(n, bits)] uint8."""
    codes = torch.empty(n, dtype=torch.uint8, device=packed.device)
    packed = packed.contiguous()
    for width, shift, place in sections(n, bits):
        section = packed[place]
        size = len(section)
        unpack_section[(blocks(size),)](section, codes, n, size, shift, width, BLOCK)
    return codes


@kernel
def pack_section(
    codes: tl.tensor,
    section: tl.tensor,
    n: int,
    size: int,
    SHIFT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.full((BLOCK,), 0, tl.int32)
    for run in tl.static_range(8 // WIDTH):
        i = run * size + j
        code = tl.load(codes + i, mask=(j < size) & (i < n), other=0).to(tl.int32)
        byte |= ((code >> SHIFT) & ((1 << WIDTH) - 1)) << (run * WIDTH)
    tl.store(section + j, byte.to(tl.uint8), mask=j < size)


@kernel
def unpack_section(
    section: tl.tensor,
    codes: tl.tensor,
    n: int,
    size: int,
    SHIFT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(section + j, mask=j < size, other=0).to(tl.int32)
    for run in tl.static_range(8 // WIDTH):
        i = run * size + j
        inside = (j < size) & (i < n)
        code = ((byte >> (run * WIDTH)) & ((1 << WIDTH) - 1)) << SHIFT
        if SHIFT:
            code |= tl.load(codes + i, mask=inside, other=0).to(tl.int32)
        tl.store(codes + i, code.to(tl.uint8), mask=inside)
