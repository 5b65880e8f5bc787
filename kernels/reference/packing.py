"""Packing of 1- to 8-bit codes.

Packed layout. ``bits`` is split into its powers of two, widest first (7 = 4 + 2 + 1): one section per part,
one after another. The first section holds the codes' lowest bits, the next the bits above them. A section of
``w``-bit parts of ``n`` codes is ``m = ceil(n * w / 8)`` bytes, and byte ``j`` holds the parts of codes
``j``, ``j + m``, ``j + 2m``, …, from its lowest bits up; codes past the end count as zero. No part straddles
two bytes, and one shift and mask over a section gives a whole run of the output, contiguous on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SECTION_WIDTHS = (8, 4, 2, 1)


def packed_size(n: int, bits: int) -> int:
    """Bytes that ``n`` codes of ``bits`` (1 to 8) bits take."""
    return sum(part.stop - part.start for _, _, part in sections(n, bits))


def sections(n: int, bits: int) -> Iterator[tuple[int, int, slice]]:
    """For each section: the width of its parts, which bit of a code they begin at, and its bytes."""
    shift = start = 0
    for width in (w for w in SECTION_WIDTHS if bits & w):
        size = -(-n * width // 8)
        yield width, shift, slice(start, start + size)
        shift += width
        start += size


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` [n] uint8, each below ``2 ** bits``, as ``packed_size(n, bits)`` bytes."""
    packed = torch.zeros(packed_size(codes.numel(), bits), dtype=torch.uint8)
    for width, shift, place in sections(codes.numel(), bits):
        section = packed[place]
        for i, code in enumerate(codes.tolist()):
            part = (code >> shift) & ((1 << width) - 1)
            section[i % len(section)] |= part << (width * (i // len(section)))
    return packed


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """The ``n`` codes [n] uint8 that ``pack`` made into ``packed`` [packed_size(n, bits)] uint8."""
    codes = [0] * n
    for width, shift, place in sections(n, bits):
        section = packed[place].tolist()
        for i in range(n):
            part = (section[i % len(section)] >> (width * (i // len(section)))) & ((1 << width) - 1)
            codes[i] |= part << shift
    return torch.tensor(codes, dtype=torch.uint8)
