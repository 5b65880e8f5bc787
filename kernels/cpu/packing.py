"""Packing of 1- to 8-bit codes; the layout is in ``kvtool.kernels.reference.packing``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kvtool.kernels.cpu.jit import compiled
from kvtool.kernels.reference import packed_size, sections

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` [n] uint8, each below ``2 ** bits``, as ``packed_size(n, bits)`` bytes."""
    n = codes.numel()
    packed = torch.zeros(packed_size(n, bits), dtype=torch.uint8)
    source, target = codes.contiguous().numpy(), packed.numpy()
    for width, shift, place in sections(n, bits):
        section = target[place]
        for run in range(8 // width):
            part = source[run * len(section) : (run + 1) * len(section)]
            _move(part, section[: len(part)], shift, width, width * run)
    return packed


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """The ``n`` codes [n] uint8 that ``pack`` made into ``packed`` [packed_size(n, bits)] uint8."""
    codes = torch.zeros(n, dtype=torch.uint8)
    source, target = packed.contiguous().numpy(), codes.numpy()
    for width, shift, place in sections(n, bits):
        section = source[place]
        for run in range(8 // width):
            part = target[run * len(section) : (run + 1) * len(section)]
            _move(section[: len(part)], part, width * run, width, shift)
    return codes


def _move(source: Bytes, target: Bytes, low: int, width: int, high: int) -> None:
    """Set bits ``high`` to ``high + width`` of each byte of ``target``, zero before, from ``low`` in source."""
    _shift_and_mask(source, target, np.uint8(low), np.uint8((1 << width) - 1), np.uint8(high))


@compiled
def _shift_and_mask(source: Bytes, target: Bytes, low: np.uint8, mask: np.uint8, high: np.uint8) -> None:
    # Arguments of one byte and shifts that are seen to be below 8 let LLVM work in bytes, eight times as many
    # at once as in the 64-bit integers that arithmetic on Python's own would take.
    for i in range(len(target)):
        target[i] |= ((source[i] >> (low & np.uint8(7))) & mask) << (high & np.uint8(7))
