"""Transform coefficients in as many lanes as there are components, decoded side by side, and rANS (arXiv 1311.2540).

``codes`` [T, C] int16 are expected as ``kvtool.kernels.reference.context_model`` says, but for two things. A token's loudness
changes only from band to band (``bands``), so that components of a band wait for none of its others: a decoder that takes
band b of token t - b in step t needs T + bands steps in all. And the last components are not predicted: their magnitudes
are coded, and their signs apart. The block says which.

A component is a lane, unless its codes are all 0; then it is not coded. A lane's state has 24 bits, at least 2**16 between steps,
and takes a byte at a time, so that little is lost where it ends. ``LANES`` neighbours in a band are a group, and share a row
of bytes. For each token a group has four steps: the symbol, the width of an excess, the excess, and the low bits. After each,
every lane that is short takes a byte, in order, and then every lane that still is.

A block is the first component whose signs are apart, 3 bytes; 1 byte, which is 1 if all components are coded, else 0, and then
a bit for each component follows, set for those that are; each group's length, 3 bytes; each group, its lanes' states, 3
bytes each, and its row; and the signs that are left over. Signs are bits, set for negative codes, token by token, in
a token component by component. A lane ends at 2**16 and the next 16 of them, or zeros once there are no more; those left
over follow. All is little-endian, the first bit the lowest. A lane that ends elsewhere has read something else.

``cumulative`` is that of ``kvtool.kernels.reference.context``. For a magnitude m its row for a code that is predicted to be 0 has
the shares of m and -m together, m from 0 on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from kvtool.kernels.reference.context_model import (
    ONE,
    SLOWER,
    SYMBOLS,
    Component,
    Expected,
    expect,
    power,
    remember,
)

PRECISION, LOWEST, SIGNS = 16, 1 << 16, 16
"""Bits of a share; the least state; how many signs a lane ends with."""

HEAD = 4
"""Bytes of a block before what it may say of its components."""

LANES = 32
"""Of a group: as many as a GPU computes in step."""

NARROW, MOST = 64, 24
"""A width up to which bands always grow, and about how many there are of the widest."""

PREDICTED = 5
"""One of so many components is predicted, at the least."""

Take = tuple[int, int]
"""A start and a share of 2**16."""


def bands(components: int) -> list[range]:
    """Neighbours with the same loudness: one, two, four and so on, and then of equal widths."""
    widest = max(NARROW, -(-components // (MOST * LANES)) * LANES)
    ends, width = [0], 1
    while ends[-1] < components:
        ends.append(min(ends[-1] + width, components))
        width = min(2 * width, widest)
    return [range(*pair) for pair in pairwise(ends)]


class Layout(NamedTuple):
    """Which components are coded, ``live``, as lanes; the lanes in bands and groups.

    Signs are apart from component ``first_apart`` on, which is lane ``apart``. ``widths`` are those of the bands, with what is
    not coded.
    """

    live: list[int]
    first_apart: int
    apart: int
    bands: list[range]
    widths: list[int]
    groups: list[range]

    @classmethod
    def of(cls, components: int, live: list[int], first_apart: int) -> Layout:
        cut = bands(components)
        places = [range(bisect_left(live, band.start), bisect_left(live, band.stop)) for band in cut]
        groups = [
            range(first, min(first + LANES, lanes.stop))
            for lanes in places
            for first in range(lanes.start, lanes.stop, LANES)
        ]
        return cls(live, first_apart, bisect_left(live, first_apart), places, list(map(len, cut)), groups)

    @classmethod
    def for_codes(cls, codes: Tensor) -> Layout:
        """What suits ``codes``: so many signs are apart that all lanes end with some.

        What is predicted takes fewer bits, so that there are no more of these than that, nor any of the first components.
        """
        counts = (codes != 0).sum(0)
        live = counts.nonzero()[:, 0].tolist()
        signs = counts.flip(0).cumsum(0).flip(0)
        first = int((signs >= SIGNS * len(live)).sum()) - 1
        return cls.of(codes.shape[1], live, max(first, codes.shape[1] // PREDICTED))


@cache
def gain(components: int) -> int:
    """How far loudness moves to the mean of a band of ``components``, in 65536ths, as if after each of them."""
    kept = ONE
    for _ in range(components):
        kept -= kept >> SLOWER
    return ONE - kept


def wide_encode(
    codes: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor
) -> Tensor:
    """One block of bytes [n] uint8. ``exponents``, ``scales`` and ``weights`` are as in ``Conditions``."""
    bounds, layout = cumulative.tolist(), Layout.for_codes(codes)
    coded = codes[:, layout.live]
    takes: list[list[list[Take | None]]] = [[] for _ in codes]
    for t, lanes, expected in _walk(coded, layout, exponents, scales, weights):
        for i, one in zip(lanes, expected, strict=True):
            takes[t].append(_takes(bounds, one, int(coded[t, i]), i >= layout.apart))
    apart = coded[:, layout.apart :].flatten()
    signs = (apart[apart != 0] < 0).tolist()
    rows = []
    for group in layout.groups:
        ends = [LOWEST + _number(signs[SIGNS * i : SIGNS * (i + 1)]) for i in group]
        rows.append(_encode(ends, [token[group.start : group.stop] for token in takes]))
    lengths = b"".join(len(row).to_bytes(3, "little") for row in rows)
    left = _packed(signs[SIGNS * len(layout.live) :])
    head = head_of(codes.shape[1], layout)
    return torch.tensor(list(b"".join([head, lengths, *rows, left])), dtype=torch.uint8)


def wide_decode(
    stream: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor, out: Tensor
) -> None:
    """Decode ``stream`` [n] uint8, one block, into ``out`` [T, C] int16.

    Raises ValueError for a block that ``wide_encode`` has not made with these tables.
    """
    content, bounds = bytes(stream.tolist()), cumulative.tolist()
    layout, head = read_head(content, out.shape[1])
    readers, start = [], head + 3 * len(layout.groups)
    for n, group in enumerate(layout.groups):
        end = start + int.from_bytes(content[head + 3 * n : head + 3 * n + 3], "little")
        if end - start < 3 * len(group) or end > len(content):
            raise ValueError(f"a block of {len(content)} bytes ends too early")
        readers.append((group, _Lanes(content[start:end], len(group))))
        start = end
    found = torch.zeros(len(out), len(layout.live), dtype=torch.int64)
    for t, band, expected in _walk(found, layout, exponents, scales, weights):
        for group, lanes in readers:
            if group.start in band:
                some = expected[group.start - band.start : group.stop - band.start]
                codes = lanes.codes(bounds, some, [i >= layout.apart for i in group])
                found[t, group.start : group.stop] = torch.tensor(codes)
    ends = [end for _, lanes in readers for end in lanes.ends()]
    _turn(found[:, layout.apart :], ends, content[start:])
    if found.numel() and not -(1 << 15) <= int(found.min()) <= int(found.max()) < 1 << 15:
        raise ValueError(f"a block of {len(content)} bytes holds a code that 16 bits do not")
    out.zero_()
    out[:, layout.live] = found.to(torch.int16)


def head_of(components: int, layout: Layout) -> bytes:
    """What a block begins with."""
    coded = set(layout.live)
    head = layout.first_apart.to_bytes(3, "little") + bytes([len(coded) == components])
    if len(coded) == components:
        return head
    return head + _packed([i in coded for i in range(components)])


def read_head(content: bytes, components: int) -> tuple[Layout, int]:
    """The layout that a block begins with, and where that ends."""
    if len(content) < HEAD or content[HEAD - 1] > 1:
        raise ValueError(f"a block of {len(content)} bytes begins with {list(content[:HEAD])}")
    first_apart, live, end = int.from_bytes(content[:3], "little"), list(range(components)), HEAD
    if not content[HEAD - 1]:
        end += -(-components // 8)
        bits = int.from_bytes(content[HEAD:end], "little")
        live = [i for i in live if bits >> i & 1]
    if end > len(content) or first_apart > components:
        raise ValueError(f"a block of {len(content)} bytes has signs apart from component {first_apart}")
    return Layout.of(components, live, first_apart), end


def _walk(
    codes: Tensor, layout: Layout, exponents: Tensor, scales: Tensor, weights: Tensor
) -> Iterator[tuple[int, range, list[Expected]]]:
    """A token, a band, and what is expected of its lanes; codes, or magnitudes, are looked up once that has been used."""
    pairs = [(int(last), int(mean)) for last, mean in weights[layout.live].tolist()]
    predicting = pairs[: layout.apart] + [(0, 0)] * (len(pairs) - layout.apart)
    components = [
        Component(scale, pair, power(scale))
        for scale, pair in zip(scales[layout.live].tolist(), predicting, strict=True)
    ]
    for t, exponent in enumerate((exponents.to(torch.int64) - 32).tolist()):
        loudness = ONE
        for band, width in zip(layout.bands, layout.widths, strict=True):
            some = components[band.start : band.stop]
            expected = [expect(component, loudness, exponent) for component in some]
            yield t, band, expected
            values = codes[t, band.start : band.stop].tolist()
            relative = sum(
                remember(component, exponent, code, one)
                for component, code, one in zip(some, values, expected, strict=True)
            )
            loudness += (relative // width - loudness) * gain(width) >> 16


def _takes(bounds: Sequence[Sequence[int]], expected: Expected, code: int, apart: bool) -> list[Take | None]:
    """What each of the four steps takes, None for nothing."""
    off = abs(code) if apart else code - expected.middle
    off = -off if expected.turned else off
    high = off >> expected.low
    row = _row(bounds, expected, apart)
    symbol = min(max(high, -16), 16) + (0 if apart else 16)
    width = excess = None
    if abs(high) >= 16:
        over = abs(high) - 15
        bits = over.bit_length() - 1
        width, excess = _bits(bits, 4), _bits(over - (1 << bits), bits)
    low = _bits(off & ((1 << expected.low) - 1), expected.low)
    return [(row[symbol], row[symbol + 1] - row[symbol]), width, excess, low]


def _row(bounds: Sequence[Sequence[int]], expected: Expected, apart: bool) -> Sequence[int]:
    row = bounds[expected.table]
    if not apart:
        return row
    middle = SYMBOLS // 2
    return [0, *(row[middle + 1 + m] - row[middle - m] for m in range(middle + 1))]


def _bits(value: int, bits: int) -> Take | None:
    return (value << (PRECISION - bits), 1 << (PRECISION - bits)) if bits else None


def _number(bits: Sequence[bool]) -> int:
    return sum(bit << n for n, bit in enumerate(bits))


def _packed(bits: Sequence[bool]) -> bytes:
    return _number(bits).to_bytes(-(-len(bits) // 8), "little")


def _encode(states: list[int], tokens: Sequence[Sequence[Sequence[Take | None]]]) -> bytes:
    """A group's states and row, backwards from how its lanes end."""
    row: list[int] = []
    for token in reversed(tokens):
        for step in reversed(range(4)):
            given: list[list[int]] = [[], []]
            for lane in reversed(range(len(states))):
                if (take := token[lane][step]) is None:
                    continue
                (start, share), x, short = take, states[lane], []
                while x >= share << 8:
                    short.append(x & 255)
                    x >>= 8
                states[lane] = (x // share << PRECISION) + x % share + start
                # The last that is given is the first to be taken.
                for taken, byte in enumerate(reversed(short)):
                    given[taken].append(byte)
            row += given[1] + given[0]
    return b"".join([*(x.to_bytes(3, "little") for x in states), bytes(reversed(row))])


class _Lanes:
    """The lanes of a group as they are decoded."""

    def __init__(self, content: bytes, lanes: int) -> None:
        self.states = [int.from_bytes(content[3 * n : 3 * n + 3], "little") for n in range(lanes)]
        self.content, self.read = content, 3 * lanes
        if any(x < LOWEST for x in self.states):
            raise ValueError(f"a group of {len(content)} bytes begins with a state that is none")

    def codes(
        self, bounds: Sequence[Sequence[int]], expected: Sequence[Expected], apart: Sequence[bool]
    ) -> list[int]:
        """A token's codes; magnitudes where signs are ``apart``."""
        takes: list[Take | None] = []
        high = []
        for x, one, is_apart in zip(self.states, expected, apart, strict=True):
            row, slot = _row(bounds, one, is_apart), x & (LOWEST - 1)
            symbol = max(s for s in range(len(row) - 1) if row[s] <= slot)
            takes.append((row[symbol], row[symbol + 1] - row[symbol]))
            high.append(symbol - (0 if is_apart else 16))
        self._take(takes)
        widths = self._bits([4 if abs(h) == 16 else 0 for h in high])
        excess = self._bits([w if abs(h) == 16 else 0 for w, h in zip(widths, high, strict=True)])
        low = self._bits([one.low for one in expected])
        codes = []
        for n, (h, one) in enumerate(zip(high, expected, strict=True)):
            if abs(h) == 16:
                over = (1 << widths[n]) + excess[n] - 1
                h += over if h > 0 else -over
            off = (h << one.low) + low[n]
            codes.append(one.middle + (-off if one.turned else off))
        return codes

    def ends(self) -> list[int]:
        if self.read != len(self.content) or any(x >> SIGNS != 1 for x in self.states):
            raise ValueError(f"a group of {len(self.content)} bytes does not end where it was begun")
        return [x - LOWEST for x in self.states]

    def _bits(self, bits: Sequence[int]) -> list[int]:
        values = [(x & (LOWEST - 1)) >> (PRECISION - n) for x, n in zip(self.states, bits, strict=True)]
        self._take([_bits(value, n) for value, n in zip(values, bits, strict=True)])
        return [value if n else 0 for value, n in zip(values, bits, strict=True)]

    def _take(self, takes: Sequence[Take | None]) -> None:
        for lane, take in enumerate(takes):
            if take is not None:
                x = self.states[lane]
                self.states[lane] = take[1] * (x >> PRECISION) + (x & (LOWEST - 1)) - take[0]
        for _ in range(2):
            for lane, x in enumerate(self.states):
                if x < LOWEST:
                    if self.read == len(self.content):
                        raise ValueError(f"a group of {len(self.content)} bytes ends too early")
                    self.states[lane] = x << 8 | self.content[self.read]
                    self.read += 1


def _turn(magnitudes: Tensor, ends: Sequence[int], left: bytes) -> None:
    """Gives ``magnitudes`` [T, n] their signs: those with which lanes end, and those that are left over."""
    bits = [end >> n & 1 for end in ends for n in range(SIGNS)]
    bits += [byte >> n & 1 for byte in left for n in range(8)]
    places = magnitudes.nonzero()
    needed = -(-max(0, len(places) - SIGNS * len(ends)) // 8)
    if len(left) != needed or any(bits[len(places) :]):
        raise ValueError(f"{len(places)} signs, and {len(left)} bytes of them, expected {needed}")
    for (t, i), bit in zip(places.tolist(), bits, strict=False):
        if bit:
            magnitudes[t, i] *= -1
