"""Transform coefficients under an adaptive model; ``kvtool.kernels.reference.context`` has the format.

The expectation of a token's components is computed for all of them at once, except for how loud the token is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kvtool.kernels.cpu.context_model import (
    SLOWER,
    Int,
    Ints,
    expect,
    first_symbols,
    learn,
    memory_of,
    power,
    remember,
    table_entries,
    table_of,
    weighed,
)
from kvtool.kernels.cpu.jit import compiled
from kvtool.kernels.reference.context import LOWEST
from kvtool.kernels.reference.context_model import Conditions

PADDING = 8
"""Words after the last: a code reads four at most, and only then is checked whether there were as many."""

U8, U16, U32, U48 = np.uint64(8), np.uint64(16), np.uint64(32), np.uint64(48)
L, LOW16, LOW32 = np.uint64(LOWEST), np.uint64(0xFFFF), np.uint64(0xFFFFFFFF)


def context_count(codes: Tensor, conditions: Conditions, counts: Tensor) -> None:
    """Add to ``counts`` [BUCKETS * CLASSES, SYMBOLS] int64 how often each symbol stands in each table."""
    _count(*_arrays(codes, conditions), counts.numpy())


def context_encode(codes: Tensor, conditions: Conditions, cumulative: Tensor) -> Tensor:
    """One block of bytes [n] uint8."""
    shares = np.empty(4 * codes.numel(), np.uint32)
    n = _shares(*_arrays(codes, conditions), table_entries(cumulative), shares)
    words = np.empty(n, np.uint32)
    state, used = _encode(shares[:n], words)
    content = int(state).to_bytes(8, "little") + words[:used][::-1].astype("<u4").tobytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def context_decode(stream: Tensor, conditions: Conditions, cumulative: Tensor, out: Tensor) -> None:
    """Decode ``stream`` [n] uint8, one block, into ``out`` [T, C] int16.

    Raises ValueError for a block that ``context_encode`` has not made with these tables.
    """
    content = stream.contiguous().numpy().tobytes()
    if len(content) < 8 or len(content) % 4:
        raise ValueError(f"a block of {len(content)} bytes cannot hold a state and words")
    words = np.zeros(len(content) // 4 - 2 + PADDING, np.uint32)
    words[:-PADDING] = np.frombuffer(content[8:], "<u4")
    entries, codes = table_entries(cumulative), torch.empty(out.shape, dtype=torch.int16)
    state = np.uint64(int.from_bytes(content[:8], "little"))
    tables = entries, first_symbols(entries)
    state, read, fits = _decode(*_arrays(codes, conditions), *tables, state, words)
    if not fits:
        raise ValueError(f"a block of {len(content)} bytes holds a code that 16 bits do not")
    if read > len(words) - PADDING:
        raise ValueError(f"a block of {len(content)} bytes ends too early")
    if read != len(words) - PADDING or state != LOWEST:
        raise ValueError(f"a block of {len(content)} bytes does not end where it was begun")
    out.copy_(codes)


def _arrays(codes: Tensor, conditions: Conditions) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """``codes`` and ``conditions`` as the loops take them; ``loudness`` is written to."""
    exponents, scales, weights = (x.to(torch.int64).contiguous().numpy() for x in conditions[:3])
    return codes.contiguous().numpy(), exponents, scales, weights, conditions.loudness.numpy()


@compiled
def _louder(loud: Int, code: Int, unit: Int, memory: Ints, i: Int) -> Int:
    """The loudness after ``code``: its expected magnitude is replaced by the one that came."""
    return loud + ((remember(memory, i, code, unit) - loud) >> SLOWER)


@compiled
def _symbol(off: Int, low: Int) -> Int:
    return min(max(off >> low, -16), 16) + 16


@compiled
def _count(codes: Ints, exponents: Ints, scales: Ints, weights: Ints, loudness: Ints, counts: Ints) -> None:
    memory = memory_of(scales)
    for t in range(len(exponents)):
        loud, unit = np.int64(loudness[t]), power(4 * (exponents[t] - 32))
        expect(memory, scales, weights, exponents[t] - 32)
        for i in range(len(scales)):
            table, low = table_of(memory[6, i], memory[5, i], weighed(loud))
            off = codes[t, i] - memory[4, i]
            counts[table, _symbol(-off if memory[5, i] & 8 else off, low)] += 1
            loud = _louder(loud, np.int64(codes[t, i]), unit, memory, i)
        loudness[t] = loud
        learn(memory)


@compiled
def _shares(
    codes: Ints, exponents: Ints, scales: Ints, weights: Ints, loudness: Ints, entries: Ints, out: Ints
) -> Int:
    """Shares and starts of all coded symbols, in order, and their number."""
    memory, n = memory_of(scales), 0
    for t in range(len(exponents)):
        loud, unit = np.int64(loudness[t]), power(4 * (exponents[t] - 32))
        expect(memory, scales, weights, exponents[t] - 32)
        for i in range(len(scales)):
            table, low = table_of(memory[6, i], memory[5, i], weighed(loud))
            off = codes[t, i] - memory[4, i]
            off = -off if memory[5, i] & 8 else off
            symbol = _symbol(off, low)
            out[n] = entries[table, symbol]
            n += 1
            if symbol == 0 or symbol == 32:
                excess, width = abs(off >> low) - 15, 0
                while excess >> (width + 1):
                    width += 1
                n = _bits(out, n, width, 4)
                n = _bits(out, n, excess - (1 << width), width)
            n = _bits(out, n, off & ((1 << low) - 1), low)
            loud = _louder(loud, np.int64(codes[t, i]), unit, memory, i)
        loudness[t] = loud
        learn(memory)
    return n


@compiled
def _bits(out: Ints, n: Int, value: Int, bits: Int) -> Int:
    if bits == 0:
        return n
    out[n] = (1 << (32 - bits)) | (value << (16 - bits))
    return n + 1


@compiled
def _encode(shares: Ints, words: Ints) -> tuple[Int, Int]:
    x, n = L, 0
    for k in range(len(shares) - 1, -1, -1):
        share, start = np.uint64(shares[k]) >> U16, np.uint64(shares[k]) & LOW16
        if x >= share << U48:
            words[n] = x & LOW32
            n += 1
            x >>= U32
        x = (x // share << U16) + x % share + start
    return x, n


@compiled
def _take(x: Int, share: Int, start: Int, words: Ints, read: Int) -> tuple[Int, Int]:
    x = share * (x >> U16) + (x & LOW16) - start
    if x < L:
        x = (x << U32) | np.uint64(words[read])
        read += 1
    return x, read


@compiled
def _read_bits(x: Int, bits: Int, words: Ints, read: Int) -> tuple[Int, Int, Int]:
    if bits == 0:
        return 0, x, read
    value = np.int64(x & LOW16) >> (16 - bits)
    x, read = _take(x, np.uint64(1 << (16 - bits)), np.uint64(value << (16 - bits)), words, read)
    return value, x, read


@compiled
def _decode(
    codes: Ints,
    exponents: Ints,
    scales: Ints,
    weights: Ints,
    loudness: Ints,
    entries: Ints,
    symbols: Ints,
    x: Int,
    words: Ints,
) -> tuple[Int, Int, bool]:
    """The final state; the words read, more than there are if they did not suffice; whether all codes fitted."""
    memory, read = memory_of(scales), 0
    last = len(words) - PADDING
    for t in range(len(exponents)):
        loud, unit = np.int64(loudness[t]), power(4 * (exponents[t] - 32))
        expect(memory, scales, weights, exponents[t] - 32)
        for i in range(len(scales)):
            table, low = table_of(memory[6, i], memory[5, i], weighed(loud))
            slot = x & LOW16
            symbol = symbols[table, slot >> U8]
            entry = np.uint64(entries[table, symbol])
            while slot - (entry & LOW16) >= entry >> U16:
                symbol += np.uint8(1)
                entry = np.uint64(entries[table, symbol])
            x, read = _take(x, entry >> U16, entry & LOW16, words, read)
            off = np.int64(symbol) - 16
            if symbol == 0 or symbol == 32:
                width, x, read = _read_bits(x, 4, words, read)
                rest, x, read = _read_bits(x, width, words, read)
                off += (1 << width) + rest - 1 if off > 0 else 1 - (1 << width) - rest
            if low:
                rest, x, read = _read_bits(x, low, words, read)
                off = (off << low) + rest
            code = memory[4, i] + (-off if memory[5, i] & 8 else off)
            if read > last or code < -(1 << 15) or code >= 1 << 15:
                return x, read, read > last
            codes[t, i] = code
            loud = _louder(loud, code, unit, memory, i)
        loudness[t] = loud
        learn(memory)
    return x, read, True
