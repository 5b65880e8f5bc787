"""Transform coefficients in lanes; the format is in ``kvtool.kernels.reference.wide``.

Band b decodes token t - b in launch t, a program for each group of lanes. What lanes remember lies in memory between launches.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import triton.language as tl
from kvtool.kernels import cpu
from kvtool.kernels.cpu.context_model import Ints
from kvtool.kernels.cpu.wide import begin, turn
from kvtool.kernels.reference import wide as reference
from kvtool.kernels.reference.context_model import (
    CLASSES,
    EIGHTHS,
    FAR,
    HISTORY,
    HISTORY_FLOOR,
    LARGEST,
    LOG,
    LOUD,
    LOUDEST,
    LOUDNESS,
    LOUDNESS_FLOOR,
    NEAR,
    ONE,
    QUIETEST,
    SCALE,
    SLOW,
    SYMBOLS,
    power,
)
from kvtool.kernels.reference.wide import LANES, LOWEST, SIGNS, Layout
from kvtool.kernels.triton.jit import kernel
from kvtool.kernels.triton.symbol import symbol_of

WARPS = 1
"""A group's lanes are those of a warp."""

HALVINGS = 6
"""To find one of 33 symbols."""

CONSTANTS = {
    "CLASSES": CLASSES,
    "FAR": FAR,
    "HISTORY": HISTORY,
    "HISTORY_FLOOR": HISTORY_FLOOR,
    "LARGEST": LARGEST,
    "LOUD": LOUD,
    "LOUDEST": LOUDEST,
    "LOUDNESS": LOUDNESS,
    "LOUDNESS_FLOOR": LOUDNESS_FLOOR,
    "NEAR_1": NEAR[0],
    "NEAR_2": NEAR[1],
    "NEAR_3": NEAR[2],
    "NEAR_4": NEAR[3],
    "ONE": ONE,
    "QUIETEST": QUIETEST,
    "SCALE": SCALE,
    "SLOW": SLOW,
    "SYMBOLS": SYMBOLS,
    "HALVINGS": HALVINGS,
    "LANES": LANES,
    "LOWEST": LOWEST,
}


def wide_encode(
    codes: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor
) -> Tensor:
    """One block of bytes [n] uint8, made on the CPU: only decoding is ever waited for."""
    block = cpu.wide_encode(codes.cpu(), exponents.cpu(), scales.cpu(), weights.cpu(), cumulative.cpu())
    return block.to(codes.device)


def wide_decode(
    stream: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor, out: Tensor
) -> None:
    """Decode ``stream`` [n] uint8, one block, into ``out`` [T, C] int16.

    Raises ValueError for a block that ``wide_encode`` has not made with these tables, once all of it is decoded.
    """
    content = stream.cpu().contiguous().numpy()
    layout, head = reference.read_head(content.tobytes(), out.shape[1])
    starts, states = begin(content, head, layout.groups)
    tokens, lanes, device = len(out), len(layout.live), out.device

    def on_device(values: object, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).contiguous().to(device)

    scales, weights = (x.cpu()[layout.live].to(torch.int64) for x in (scales, weights))
    weights[layout.apart :] = 0
    by_lane = torch.stack([scales, *weights.mT, (torch.arange(lanes) >= layout.apart).long()])
    powers = torch.tensor([[power(scale), power(-scale)] for scale in scales.tolist()]).view(-1, 2)
    groups = _groups(layout, starts)
    bands = [layout.widths, [reference.gain(width) for width in layout.widths]]
    magnitudes = torch.nn.functional.pad(folded_bounds(cumulative), (0, SYMBOLS // 2), value=1 << 16)
    memory = on_device(torch.stack([powers[:, 0], *torch.zeros(2, lanes, dtype=torch.int64)]), torch.int64)
    state, values = on_device(states), torch.zeros(tokens, lanes, dtype=torch.int64, device=device)
    loudness, totals = torch.zeros(2, tokens, len(layout.bands), dtype=torch.int64, device=device)
    reads = on_device(groups[:, 3])
    constant = (
        on_device(torch.nn.functional.pad(torch.from_numpy(content.copy()), (0, 1)), torch.uint8),
        on_device(torch.stack([cumulative.cpu(), magnitudes])),
        on_device(exponents.to(torch.int32) - 32),
        on_device(by_lane),
        on_device(powers[:, 1], torch.int64),
        on_device(groups),
        on_device(bands),
        on_device(LOG),
        on_device(EIGHTHS, torch.int64),
    )
    changed = (memory, state, values, loudness, totals, reads)
    sizes = (tokens, lanes, len(layout.bands), len(cumulative), len(content))
    for step in range(tokens + len(layout.bands) - 1 if lanes else 0):
        decode_step[(len(groups),)](*constant, *changed, step, *sizes, **CONSTANTS, num_warps=WARPS)
    filled = groups[:, 1] > 0
    ended = np.array_equal(reads.cpu().numpy()[filled], starts[1:]) if tokens else len(starts) == 1
    ends = state.cpu().numpy().astype(np.int64)
    if not ended or (ends >> SIGNS != 1).any():
        raise ValueError(f"a block of {len(content)} bytes does not end where it was begun")
    found = values.cpu().numpy()
    turn(found[:, layout.apart :], ends - LOWEST, content[starts[-1] :])
    if found.size and not -(1 << 15) <= found.min() <= found.max() < 1 << 15:
        raise ValueError(f"a block of {len(content)} bytes holds a code that 16 bits do not")
    out.zero_()
    out[:, layout.live] = torch.from_numpy(found.astype(np.int16)).to(device)


def folded_bounds(cumulative: Tensor) -> Tensor:
    """[tables, 18] int32: where the magnitudes of codes that are predicted to be 0 begin."""
    ends = cumulative.cpu()[:, SYMBOLS // 2 + 1 :] - cumulative.cpu()[:, : SYMBOLS // 2 + 1].flip(1)
    return torch.nn.functional.pad(ends, (1, 0))


def _groups(layout: Layout, starts: Ints) -> Ints:
    """[groups, 4]: first lane, lanes, band, and where the row begins. A band without lanes has a group without any."""
    rows, following = [], iter(zip(layout.groups, starts, strict=False))
    for number, band in enumerate(layout.bands):
        rows += [[band.start, 0, number, 0]] if not band else []
        for _ in range(-(-len(band) // LANES)):
            group, start = next(following)
            rows.append([group.start, len(group), number, int(start) + 3 * len(group)])
    return np.array(rows, np.int64).reshape(-1, 4)


@kernel
def log2(x: tl.tensor, logarithms: tl.tensor) -> tl.tensor:
    # By the bits of a float64, which holds x as it is.
    bits = x.to(tl.float64).to(tl.int64, bitcast=True)
    return 64 * ((bits >> 52) - 1039) + tl.load(logarithms + ((bits >> 47) & 31))


@kernel
def power_of_2(eighths: tl.tensor, roots: tl.tensor) -> tl.tensor:
    return (tl.load(roots + (eighths & 7)) << 30) >> (30 - (eighths >> 3)).to(tl.int64)


@kernel
def refill(
    x: tl.tensor, used: tl.tensor, read: tl.tensor, content: tl.tensor, length: int, LOWEST: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Lanes that are short take a byte each, in order, and those that still are another."""
    for _ in tl.static_range(2):
        short = (used & (x < LOWEST)).to(tl.int32)
        at = read + tl.cumsum(short, 0) - short
        byte = tl.load(content + at, mask=(short > 0) & (at < length), other=0).to(tl.int32)
        x = tl.where(short > 0, (x << 8) | byte, x)
        read += tl.sum(short, 0)
    return x, read


@kernel
def read_bits(x: tl.tensor, bits: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The value of the next ``bits``, 0 where there are none, and the state after them."""
    value = (x & 0xFFFF) >> (16 - bits)
    return value, ((x >> 16) << (16 - bits)) + (x & 0xFFFF) - (value << (16 - bits))


@kernel
def decode_step(
    content: tl.tensor,
    tables: tl.tensor,
    exponents: tl.tensor,
    by_lane: tl.tensor,
    inverses: tl.tensor,
    groups: tl.tensor,
    by_band: tl.tensor,
    logarithms: tl.tensor,
    roots: tl.tensor,
    memory: tl.tensor,
    states: tl.tensor,
    values: tl.tensor,
    loudness: tl.tensor,
    totals: tl.tensor,
    reads: tl.tensor,
    step: int,
    tokens: int,
    lanes: int,
    bands: int,
    n_tables: int,
    length: int,
    CLASSES: tl.constexpr,
    FAR: tl.constexpr,
    HISTORY: tl.constexpr,
    HISTORY_FLOOR: tl.constexpr,
    LARGEST: tl.constexpr,
    LOUD: tl.constexpr,
    LOUDEST: tl.constexpr,
    LOUDNESS: tl.constexpr,
    LOUDNESS_FLOOR: tl.constexpr,
    NEAR_1: tl.constexpr,
    NEAR_2: tl.constexpr,
    NEAR_3: tl.constexpr,
    NEAR_4: tl.constexpr,
    ONE: tl.constexpr,
    QUIETEST: tl.constexpr,
    SCALE: tl.constexpr,
    SLOW: tl.constexpr,
    SYMBOLS: tl.constexpr,
    HALVINGS: tl.constexpr,
    LANES: tl.constexpr,
    LOWEST: tl.constexpr,
) -> None:
    group = tl.program_id(0)
    first, count = tl.load(groups + 4 * group), tl.load(groups + 4 * group + 1)
    band = tl.load(groups + 4 * group + 2)
    t = step - band
    if (t >= 0) & (t < tokens):
        place = t * bands + band
        loud = tl.full((), ONE, tl.int64)
        if band > 0:
            before, total = tl.load(loudness + place - 1), tl.load(totals + place - 1)
            width, gain = tl.load(by_band + band - 1), tl.load(by_band + bands + band - 1)
            loud = before + (((total // width - before) * gain) >> 16)
        tl.store(loudness + place, loud)
        exponent = tl.load(exponents + t)
        lane = tl.arange(0, LANES)
        used, own = lane < count, first + lane
        # What is expected of the lanes.
        history = tl.load(memory + own, mask=used, other=0)
        last = tl.load(memory + lanes + own, mask=used, other=0)
        mean = tl.load(memory + 2 * lanes + own, mask=used, other=0)
        scale = tl.load(by_lane + own, mask=used, other=0).to(tl.int64)
        by_last = tl.load(by_lane + lanes + own, mask=used, other=0).to(tl.int64)
        by_mean = tl.load(by_lane + 2 * lanes + own, mask=used, other=0).to(tl.int64)
        apart = tl.load(by_lane + 3 * lanes + own, mask=used, other=0)
        expected = by_last * (last >> 8) + by_mean * (mean >> 8)
        back, unit = power_of_2(-4 * exponent, roots), power_of_2(4 * exponent, roots)
        predicted = tl.minimum(tl.maximum((expected * back) >> 25, -(1 << 19)), 1 << 19)
        middle = tl.where(tl.abs(predicted) >= 64, (predicted + 32) >> 6, 0)
        above = predicted - 64 * middle
        size = tl.abs(above)
        near = (size >= NEAR_1).to(tl.int32) + (size >= NEAR_2).to(tl.int32)
        near += (size >= NEAR_3).to(tl.int32) + (size >= NEAR_4).to(tl.int32)
        kind = tl.where(middle == 0, near, 5 + (size >= FAR).to(tl.int32))
        magnitude = 8 * SCALE * scale + HISTORY * log2(history + HISTORY_FLOOR, logarithms)
        magnitude += LOUDNESS * log2(loud + LOUDNESS_FLOOR, logarithms) - 512 * exponent + 128
        bucket = magnitude >> 8
        low = tl.where(bucket > LOUD, tl.minimum((bucket - LOUD + 3) >> 2, 15), 0)
        bucket = tl.minimum(tl.maximum(bucket - 4 * low, QUIETEST), LOUD) - QUIETEST
        row = tables + (apart * n_tables + bucket.to(tl.int32) * CLASSES + kind) * (SYMBOLS + 1)
        low = low.to(tl.int32)
        # The symbol, and what it leaves of the state.
        x, read = tl.load(states + own, mask=used, other=LOWEST), tl.load(reads + group)
        slot = x & 0xFFFF
        symbol = symbol_of(row, slot, SYMBOLS, 16, HALVINGS, LANES)
        start = tl.load(row + symbol)
        share = tl.load(row + symbol + 1) - start
        x = tl.where(used, share * (x >> 16) + slot - start, x)
        x, read = refill(x, used, read, content, length, LOWEST)
        high = tl.where(apart > 0, symbol, symbol - SYMBOLS // 2)
        # What exceeds the symbols: how many bits it has, and these.
        escaped = used & (tl.abs(high) == SYMBOLS // 2)
        bits, x = read_bits(x, tl.where(escaped, 4, 0))
        x, read = refill(x, used, read, content, length, LOWEST)
        rest, x = read_bits(x, bits)
        x, read = refill(x, used, read, content, length, LOWEST)
        excess = tl.where(escaped, (1 << bits) + rest - 1, 0)
        high += tl.where(high > 0, excess, -excess)
        rest, x = read_bits(x, tl.where(used, low, 0))
        x, read = refill(x, used, read, content, length, LOWEST)
        off = (high.to(tl.int64) << low.to(tl.int64)) + rest
        code = middle + tl.where(above < 0, -off, off)
        tl.store(values + t * lanes + own, code, mask=used)
        tl.store(states + own, x, mask=used)
        tl.store(reads + group, read)
        # What is remembered of it.
        level = tl.minimum(tl.maximum(code * unit, -LARGEST), LARGEST)
        off = tl.minimum(tl.abs(level - 2 * expected), LARGEST)
        off = tl.where((code != 0) | (middle != 0), off, 0)
        tl.store(memory + own, history + ((off - history) >> SLOW), mask=used)
        tl.store(memory + lanes + own, level, mask=used)
        tl.store(memory + 2 * lanes + own, mean + ((level - mean) >> SLOW), mask=used)
        inverse = tl.load(inverses + own, mask=used, other=0)
        relative = tl.minimum(((off >> 8) * inverse) >> 8, LOUDEST)
        tl.atomic_add(totals + place, tl.sum(tl.where(used, relative, 0), 0))
