"""Packing of 1- to 8-bit codes; the layout is in ``kvtool.kernels.reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.reference import SECTION_WIDTHS, packed_size

__all__ = ["pack", "packed_size", "unpack"]


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` [n] uint8, each below ``2 ** bits``, as ``packed_size(n, bits)`` bytes."""
    n = codes.numel()
    packed = torch.zeros(packed_size(n, bits), dtype=torch.uint8, device=codes.device)
    shift = start = 0
    for width in (w for w in SECTION_WIDTHS if bits & w):
        size = -(-n * width // 8)
        section = packed[start : start + size]
        part = (codes >> shift) & ((1 << width) - 1)
        for run in range(8 // width):
            piece = part[run * size : (run + 1) * size]
            section[: piece.numel()] |= piece << (width * run)
        shift += width
        start += size
    return packed


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """The ``n`` codes [n] uint8 that ``pack`` made into ``packed`` [packed_size(n, bits)] uint8."""
    codes: Tensor | None = None
    shift = start = 0
    for width in (w for w in SECTION_WIDTHS if bits & w):
        size = -(-n * width // 8)
        part = _unpack_section(packed[start : start + size], width)[:n]
        codes = part if codes is None else codes.bitwise_or_(part.bitwise_left_shift_(shift))
        shift += width
        start += size
    assert codes is not None
    return codes


def _unpack_section(section: Tensor, width: int) -> Tensor:
    runs = 8 // width
    parts = torch.empty((runs, section.numel()), dtype=torch.uint8, device=section.device)
    for run in range(runs):
        torch.bitwise_right_shift(section, width * run, out=parts[run])
    return parts.bitwise_and_((1 << width) - 1).view(-1)
