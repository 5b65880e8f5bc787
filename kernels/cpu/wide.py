"""Transform coefficients in lanes; ``kvtool.kernels.reference.wide`` has the format.

Bands are decoded one after the other, each over all tokens, since the loudness of all of them is known then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from kvtool.kernels.cpu.context_model import (
    RUN,
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
from kvtool.kernels.reference import wide as reference
from kvtool.kernels.reference.context_model import ONE, SYMBOLS
from kvtool.kernels.reference.wide import Layout

LOWEST, SIGNS, LANES = reference.LOWEST, reference.SIGNS, reference.LANES
MIDDLE = SYMBOLS // 2
"""The symbol of a code that is as predicted."""

TOO_LARGE = 1 << 15
"""A positive code that 16 bits do not hold."""

PADDING = 4 * 2 * LANES
"""Bytes after the last: a token of a group reads so many at most, and only then is checked whether there were as many."""


def wide_encode(
    codes: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor
) -> Tensor:
    """One block of bytes [n] uint8."""
    layout = Layout.for_codes(codes)
    values = codes.numpy().astype(np.int64)[:, layout.live]
    apart = values[:, layout.apart :]
    signs = (apart[apart != 0] < 0).astype(np.uint8)
    apart[:] = np.abs(apart)
    states, left = _ends(signs, len(layout.live))
    entries = table_entries(cumulative), folded(cumulative)
    loudness, rows = np.full(len(codes), ONE, np.int64), []
    for band, given in _bands(layout, exponents, scales, weights):
        takes = np.zeros((len(codes), 4, len(band)), np.uint32)
        _takes(np.ascontiguousarray(values[:, band.start : band.stop]), *given, loudness, *entries, takes)
        for first in range(0, len(band), LANES):
            some = np.ascontiguousarray(takes[:, :, first : first + LANES])
            own = states[band.start + first :][: some.shape[2]]
            row = np.empty(2 * np.count_nonzero(some), np.uint8)
            length = _encode(own, some, row)
            rows.append(_states(own) + row[:length][::-1].tobytes())
    lengths = b"".join(len(row).to_bytes(3, "little") for row in rows)
    head = reference.head_of(codes.shape[1], layout)
    content = b"".join([head, lengths, *rows, left.tobytes()])
    return torch.from_numpy(np.frombuffer(bytearray(content), np.uint8))


def wide_decode(
    stream: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor, out: Tensor
) -> None:
    """Decode ``stream`` [n] uint8, one block, into ``out`` [T, C] int16.

    Raises ValueError for a block that ``wide_encode`` has not made with these tables.
    """
    n_bytes = len(stream)
    content = np.zeros(n_bytes + PADDING, np.uint8)
    content[:n_bytes] = stream.contiguous().numpy()
    layout, head = reference.read_head(content[:n_bytes].tobytes(), out.shape[1])
    starts, states = begin(content[:n_bytes], head, layout.groups)
    entries = table_entries(cumulative), folded(cumulative)
    first = first_symbols(entries[0]), first_symbols(entries[1])
    values, loudness = np.zeros((len(out), len(layout.live)), np.int32), np.full(len(out), ONE, np.int64)
    group = 0
    for band, given in _bands(layout, exponents, scales, weights):
        some, count = np.zeros((len(out), len(band)), np.int64), -(-len(band) // LANES)
        own, ends = layout.groups[group : group + count], starts[group + 1 : group + 1 + count]
        reads = starts[group : group + count] + 3 * np.array([len(lanes) for lanes in own], np.int64)
        lanes = states[band.start : band.stop]
        if not _decode(some, *given, loudness, *entries, *first, content, reads, ends, lanes):
            raise ValueError(f"a block of {n_bytes} bytes ends too early")
        if not np.array_equal(reads, ends):
            raise ValueError(f"a block of {n_bytes} bytes does not end where it was begun")
        if some.size and not -TOO_LARGE <= some.min() <= some.max() <= TOO_LARGE:
            raise ValueError(f"a block of {n_bytes} bytes holds a code that 16 bits do not")
        values[:, band.start : band.stop] = some
        group += count
    if (states >> SIGNS != 1).any():
        raise ValueError(f"a block of {n_bytes} bytes does not end where it was begun")
    turn(values[:, layout.apart :], states - LOWEST, content[starts[-1] : n_bytes])
    if values.size and not -TOO_LARGE <= values.min() <= values.max() < TOO_LARGE:
        raise ValueError(f"a block of {n_bytes} bytes holds a code that 16 bits do not")
    out.zero_()
    out.numpy()[:, layout.live] = values


Given: TypeAlias = tuple[Ints, Ints, Ints, int, int, int]


def _bands(
    layout: Layout, exponents: Tensor, scales: Tensor, weights: Tensor
) -> Iterator[tuple[range, Given]]:
    """The lanes of each band, and what their codes depend on, as the loops take it."""
    scales, predicting = scales[layout.live].to(torch.int64), weights[layout.live].to(torch.int64)
    predicting[layout.apart :] = 0
    by_token = (exponents.to(torch.int64) - 32).contiguous().numpy()
    for band, width in zip(layout.bands, layout.widths, strict=True):
        own, pairs = (x[band.start : band.stop].contiguous().numpy() for x in (scales, predicting))
        yield band, (by_token, own, pairs, layout.apart - band.start, width, reference.gain(width))


def _ends(signs: Ints, lanes: int) -> tuple[Ints, Ints]:
    """Where lanes end, with the signs that they take, and the bytes of those that are left over."""
    taken = np.zeros(SIGNS * lanes, np.int64)
    taken[: len(signs)] = signs[: len(taken)]
    ends = LOWEST + taken.reshape(-1, SIGNS) @ (1 << np.arange(SIGNS))
    return ends, np.packbits(signs[len(taken) :], bitorder="little")


def folded(cumulative: Tensor) -> Ints:
    """Entries of the magnitudes of codes that are predicted to be 0."""
    ends = cumulative[:, MIDDLE + 1 :] - cumulative[:, : MIDDLE + 1].flip(1)
    return table_entries(torch.cat([torch.zeros_like(ends[:, :1]), ends], 1))


def _states(states: Ints) -> bytes:
    return states.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def begin(content: Ints, head: int, groups: list[range]) -> tuple[Ints, Ints]:
    """Where each group begins, and the last ends, and the states of all lanes. ``content`` has lengths from ``head`` on."""
    first = head + 3 * len(groups)
    lengths, lanes = _numbers(content[head:first]), [len(group) for group in groups]
    starts = first + np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    if len(lengths) < len(groups) or (3 * np.array(lanes) > lengths).any() or starts[-1] > len(content):
        raise ValueError(f"a block of {len(content)} bytes ends too early")
    parts = [_numbers(content[s : s + 3 * n]) for s, n in zip(starts, lanes, strict=False)]
    states = np.concatenate([np.zeros(0, np.int64), *parts])
    if (states < LOWEST).any():
        raise ValueError(f"a block of {len(content)} bytes begins with a state that is none")
    return starts, states


def _numbers(content: Ints) -> Ints:
    """Integers of 3 bytes."""
    each = content[: len(content) // 3 * 3].reshape(-1, 3).astype(np.int64)
    return each[:, 0] | each[:, 1] << 8 | each[:, 2] << 16


def turn(magnitudes: Ints, ends: Ints, left: Ints) -> None:
    """Gives ``magnitudes`` [T, n] their signs: those with which lanes end, and those that are left over."""
    own = ((ends[:, None] >> np.arange(SIGNS)) & 1).astype(np.uint8).ravel()
    bits = np.concatenate([own, np.unpackbits(left, bitorder="little")])
    places = magnitudes != 0
    count = int(np.count_nonzero(places))
    needed = -(-max(0, count - len(own)) // 8)
    if len(left) != needed or bits[count:].any():
        raise ValueError(f"{count} signs, and {len(left)} bytes of them, expected {needed}")
    magnitudes[places] *= 1 - 2 * bits[:count].astype(np.int64)


@compiled
def _learn(memory: Ints, codes: Ints, unit: Int, loud: Int, width: Int, gain: Int) -> Int:
    """Remembers a band's codes; returns the loudness after them."""
    total = 0
    for i in range(len(codes)):
        total += remember(memory, i, codes[i], unit)
    learn(memory)
    return loud + (((total // width - loud) * gain) >> 16)


@compiled
def _bits(value: Int, bits: Int) -> Int:
    return np.uint32((1 << (32 - bits)) | (value << (16 - bits)))


@compiled
def _takes(
    codes: Ints,
    exponents: Ints,
    scales: Ints,
    weights: Ints,
    apart: Int,
    width: Int,
    gain: Int,
    loudness: Ints,
    entries: Ints,
    folded: Ints,
    out: Ints,
) -> None:
    """What each step of a token and lane takes: ``out`` [T, 4, C], 0 for nothing."""
    memory = memory_of(scales)
    for t in range(len(exponents)):
        expect(memory, scales, weights, exponents[t])
        added = weighed(loudness[t])
        for i in range(len(scales)):
            table, low = table_of(memory[6, i], memory[5, i], added)
            off = codes[t, i] - memory[4, i]
            off = -off if memory[5, i] & 8 else off
            high = min(max(off >> low, -16), 16)
            out[t, 0, i] = folded[table, high] if i >= apart else entries[table, high + 16]
            if abs(high) == 16:
                excess, bits = abs(off >> low) - 15, 0
                while excess >> (bits + 1):
                    bits += 1
                out[t, 1, i] = _bits(bits, 4)
                if bits:
                    out[t, 2, i] = _bits(excess - (1 << bits), bits)
            if low:
                out[t, 3, i] = _bits(off & ((1 << low) - 1), low)
        unit = power(4 * exponents[t])
        loudness[t] = _learn(memory, codes[t], unit, loudness[t], width, gain)


@compiled
def _encode(states: Ints, takes: Ints, row: Ints) -> Int:
    """Writes a group's ``row`` from its end on, and returns how long it is; ``states`` become those that it begins with."""
    n, lanes = 0, len(states)
    second, short = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    for t in range(len(takes) - 1, -1, -1):
        for step in range(3, -1, -1):
            for lane in range(lanes):
                second[lane] = short[lane] = -1
                take = np.int64(takes[t, step, lane])
                if take == 0:
                    continue
                share, start, x = take >> 16, take & 0xFFFF, states[lane]
                if x >= share << 8:
                    short[lane] = x & 255
                    x >>= 8
                    if x >= share << 8:
                        # What is given first is taken last.
                        second[lane], short[lane] = short[lane], x & 255
                        x >>= 8
                states[lane] = (x // share << 16) + x % share + start
            for taken in (second, short):
                for lane in range(lanes - 1, -1, -1):
                    if taken[lane] >= 0:
                        row[n] = taken[lane]
                        n += 1
    return n


@compiled
def _refill(states: Ints, first: Int, last: Int, content: Ints, read: Int) -> Int:
    """Lanes that are short take a byte each, and those that still are another; returns where to read on."""
    for _ in range(2):
        for lane in range(first, last):
            if states[lane] < LOWEST:
                states[lane] = (states[lane] << 8) | content[read]
                read += 1
    return read


@compiled
def _read_bits(x: Int, bits: Int) -> tuple[Int, Int]:
    """The value of the next ``bits``, one at least, and the state after them."""
    value = (x & 0xFFFF) >> (16 - bits)
    return value, ((x >> 16) << (16 - bits)) + (x & 0xFFFF) - (value << (16 - bits))


@compiled
def _decode(
    codes: Ints,
    exponents: Ints,
    scales: Ints,
    weights: Ints,
    apart: Int,
    width: Int,
    gain: Int,
    loudness: Ints,
    entries: Ints,
    folded: Ints,
    symbols: Ints,
    folded_symbols: Ints,
    content: Ints,
    reads: Ints,
    ends: Ints,
    states: Ints,
) -> bool:
    """Decodes a band, magnitudes where signs are apart; False where there was too little to read."""
    memory, n = memory_of(scales), len(scales)
    highs, lows, widths = np.empty(n, np.int64), np.empty(n, np.int64), np.zeros(n, np.int64)
    for t in range(len(exponents)):
        expect(memory, scales, weights, exponents[t])
        added = weighed(loudness[t])
        for group in range(len(reads)):
            first, last, read = group * LANES, min(group * LANES + LANES, n), reads[group]
            escapes, has_low = False, False
            for i in range(first, last):
                table, low = table_of(memory[6, i], memory[5, i], added)
                own, begin = (folded, folded_symbols) if i >= apart else (entries, symbols)
                x = states[i]
                slot = x & 0xFFFF
                symbol = np.int64(begin[table, slot >> RUN])
                entry = np.int64(own[table, symbol])
                while slot - (entry & 0xFFFF) >= entry >> 16:
                    symbol += 1
                    entry = np.int64(own[table, symbol])
                states[i] = (entry >> 16) * (x >> 16) + slot - (entry & 0xFFFF)
                highs[i] = symbol if i >= apart else symbol - 16
                lows[i] = low
                escapes |= abs(highs[i]) == 16
                has_low |= low > 0
            read = _refill(states, first, last, content, read)
            if escapes:
                for i in range(first, last):
                    if abs(highs[i]) == 16:
                        widths[i], states[i] = _read_bits(states[i], 4)
                read = _refill(states, first, last, content, read)
                for i in range(first, last):
                    if abs(highs[i]) == 16:
                        rest = 0
                        if widths[i]:
                            rest, states[i] = _read_bits(states[i], widths[i])
                        excess = (1 << widths[i]) + rest - 1
                        highs[i] += excess if highs[i] > 0 else -excess
                read = _refill(states, first, last, content, read)
            for i in range(first, last):
                off = highs[i]
                if lows[i]:
                    rest, states[i] = _read_bits(states[i], lows[i])
                    off = (off << lows[i]) + rest
                codes[t, i] = memory[4, i] + (-off if memory[5, i] & 8 else off)
            if has_low:
                read = _refill(states, first, last, content, read)
            if read > ends[group]:
                return False
            reads[group] = read
        unit = power(4 * exponents[t])
        loudness[t] = _learn(memory, codes[t], unit, loudness[t], width, gain)
    return True
