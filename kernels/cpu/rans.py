"""Interleaved rANS; the format is in ``kvtool.kernels.reference.rans``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kvtool.kernels.cpu.jit import compiled
from kvtool.kernels.reference.rans import LOWEST

Ints: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

PADDING = 64
"""Words after the last, so that a step need not check first whether there are any."""

SLOT_BITS = 12
"""Of the tables by which codes are found: larger ones take longer to fill than they save, and leave the cache."""

U16, U32, L = np.uint32(16), np.uint32(32), np.uint32(LOWEST)


def rans_encode(codes: Tensor, cumulative: Tensor, table: Tensor, precision: int, lanes: int) -> Tensor:
    """``codes`` [A, T, B] uint8, each below the tables' levels, as one block of bytes [n] uint8."""
    states = np.full(min(lanes, codes.shape[1]), LOWEST, np.uint32)
    words = np.empty(codes.numel(), np.uint16)
    source, bounds = codes.contiguous().numpy(), cumulative.numpy().astype(np.uint32)
    n = _encode(source, bounds, table.numpy(), np.uint32(precision), lanes, states, words)
    content = states.astype("<u4").tobytes() + words[:n][::-1].astype("<u2").tobytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0).byte()


def rans_decode(
    stream: Tensor, blocks: Tensor, cumulative: Tensor, table: Tensor, precision: int, lanes: int, out: Tensor
) -> None:
    """Decode ``blocks`` of ``stream`` into ``out``, side by side on as many threads as torch has.

    Raises ValueError for a block that ``rans_encode`` has not made with these tables.
    """
    shift = max(precision - SLOT_BITS, 0)
    codes, shares = _slots(cumulative.numpy().astype(np.uint32), precision, shift)
    content, target, k_of = stream.contiguous().numpy(), out.numpy(), table.numpy()

    def decode(block: list[int]) -> None:
        first, end, begin, stop = block
        n = min(lanes, stop - begin)
        words = np.zeros(max(end - first - 4 * n, 0) // 2 + PADDING, "<u2")
        if end - first < 4 * n or (end - first) % 2:
            raise ValueError(f"a block of {end - first} bytes cannot hold {n} states and words")
        # Copied as bytes, since a block may start at any address.
        words[:-PADDING].view(np.uint8)[:] = content[first + 4 * n : end]
        states = np.frombuffer(content[first : first + 4 * n].tobytes(), "<u4").astype(np.uint32)
        widths = np.uint32(precision), np.uint32(shift)
        read = _decode(states, words, codes, shares, k_of, *widths, lanes, target, begin, stop - begin)
        if read != len(words) - PADDING or (states != LOWEST).any():
            raise ValueError(f"a block of {end - first} bytes does not end where it was begun")

    listed = blocks.tolist()
    threads = min(len(listed), torch.get_num_threads())
    if threads <= 1:
        for block in listed:
            decode(block)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, listed))


@compiled
def _encode(
    codes: Ints, bounds: Ints, table: Ints, precision: Any, lanes: int, states: Ints, words: Ints
) -> int:
    heads, tokens, channels = codes.shape
    n = 0
    for row in range(heads * channels - 1, -1, -1):
        a, b = row // channels, row % channels
        bound = bounds[table[row]]
        for t in range(tokens - 1, -1, -1):
            code = codes[a, t, b]
            start = bound[code]
            share = np.uint32(bound[code + 1] - start)
            x = states[t % lanes]
            if np.uint64(x) >= np.uint64(share) << np.uint64(U32 - precision):
                words[n] = x & np.uint32(0xFFFF)
                n += 1
                x >>= U16
            states[t % lanes] = ((x // share) << precision) + x % share + start
    return n


@compiled
def _slots(bounds: Ints, precision: int, shift: int) -> tuple[Ints, Ints]:
    """For each table, the first code of each run of ``1 << shift`` slots; each code's share and start in a word."""
    tables, levels = bounds.shape[0], bounds.shape[1] - 1
    codes = np.empty((tables, 1 << (precision - shift)), np.uint8)
    shares = np.empty((tables, levels), np.uint32)
    for k in range(tables):
        filled = 0
        for s in range(levels):
            start, end = bounds[k, s], bounds[k, s + 1]
            shares[k, s] = ((end - start) << U16) | start
            runs = int((np.int64(end) - 1) >> shift) + 1
            codes[k, filled:runs] = s
            if runs > filled:
                filled = runs
    return codes, shares


@compiled
def _decode(
    states: Ints,
    words: Ints,
    codes: Ints,
    shares: Ints,
    table: Ints,
    precision: Any,
    shift: Any,
    lanes: int,
    out: Ints,
    begin: int,
    tokens: int,
) -> int:
    """Number of words read; more than there are if they did not suffice."""
    heads, _, channels = out.shape
    flat = out.reshape(-1)
    mask = np.uint32((np.uint32(1) << precision) - np.uint32(1))
    read, last = 0, len(words) - PADDING
    for row in range(heads * channels):
        slots, share = codes[table[row]], shares[table[row]]
        place = (row // channels * out.shape[1] + begin) * channels + row % channels
        for t in range(0, tokens, lanes):
            # At most a word for each lane is read in a step, and the padding holds as many.
            if read > last:
                return read
            for lane in range(min(lanes, tokens - t)):
                # Unsigned indices, since a signed one is asked each time whether it counts from the end.
                x = states[np.uint64(lane)]
                slot = x & mask
                code = slots[np.uint64(slot >> shift)]
                entry = share[np.uint64(code)]
                offset = slot - (entry & np.uint32(0xFFFF))
                # Asked for the shift first, the loop is left out altogether where each slot has its code.
                while shift and offset >= entry >> U16:
                    code += np.uint8(1)
                    entry = share[np.uint64(code)]
                    offset = slot - (entry & np.uint32(0xFFFF))
                x = (entry >> U16) * (x >> precision) + offset
                word = np.uint32(words[np.uint64(read)])
                low = x < L
                # A choice between two values, not a jump: which way it goes cannot be predicted.
                x = (x << U16) | word if low else x
                read += low
                states[np.uint64(lane)] = x
                flat[np.uint64(place)] = code
                place += channels
    return read
