"""Transform coefficients, each under a distribution that follows from those before it, and rANS (arXiv 1311.2540).

``codes`` [T, C] int16 are coded token by token, in a token component by component, under ``Conditions``.
``kvtool.kernels.reference.context_model`` turns these into a table and an expected code. Symbol 16 is that code;
0 and 32 are differences of 16 and more, and an Elias gamma code of the excess follows, and then the low bits.

``cumulative`` [BUCKETS * CLASSES, SYMBOLS + 1] int32: symbol s has the share from ``cumulative[k, s]`` to
``cumulative[k, s + 1]`` of 2**16, never empty. One state of 64 bits, at least 2**32 between steps, takes or gives 32
at a time; with 32 and 16, as in ``kvtool.kernels.reference.rans``, shares could not be as near to 1. A block is the
state, then the words as they are read, all little-endian. Encoding starts from 2**32, so a decoder that does not end
there has read something else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvtool.kernels.reference.context_model import (
    SYMBOLS,
    Component,
    Conditions,
    Expected,
    expect,
    learn,
    power,
)

PRECISION, LOWEST = 16, 1 << 32


def context_count(codes: Tensor, conditions: Conditions, counts: Tensor) -> None:
    """Add to ``counts`` [BUCKETS * CLASSES, SYMBOLS] int64 how often each symbol stands in each table."""
    for _, expected, code in _walk(codes, conditions):
        counts[expected.table, _symbol(expected, code)[0]] += 1


def context_encode(codes: Tensor, conditions: Conditions, cumulative: Tensor) -> Tensor:
    """One block of bytes [n] uint8."""
    bounds, shares = cumulative.tolist(), []
    for _, expected, code in _walk(codes, conditions):
        symbol, extra = _symbol(expected, code)
        start, end = bounds[expected.table][symbol : symbol + 2]
        shares.append((start, end - start))
        shares += [(value << (16 - bits), 1 << (16 - bits)) for value, bits in extra if bits]
    x, words = LOWEST, []
    for start, share in reversed(shares):
        if x >= share << (64 - PRECISION):
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        x = (x // share << PRECISION) + x % share + start
    content = x.to_bytes(8, "little") + b"".join(word.to_bytes(4, "little") for word in reversed(words))
    return torch.tensor(list(content), dtype=torch.uint8)


def context_decode(stream: Tensor, conditions: Conditions, cumulative: Tensor, out: Tensor) -> None:
    """Decode ``stream`` [n] uint8, one block, into ``out`` [T, C] int16.

    Raises ValueError for a block that ``context_encode`` has not made with these tables.
    """
    reader, bounds = _Reader(bytes(stream.tolist())), cumulative.tolist()
    for (t, i), expected, _ in _walk(out, conditions):
        slot = reader.slot()
        symbol = max(s for s in range(SYMBOLS) if bounds[expected.table][s] <= slot)
        start, end = bounds[expected.table][symbol : symbol + 2]
        reader.take(start, end - start)
        high = symbol - 16
        if abs(high) == 16:
            width = reader.bits(4)
            excess = (1 << width) + reader.bits(width) - 1
            high += excess if high > 0 else -excess
        off = (high << expected.low) + reader.bits(expected.low)
        code = expected.middle + (-off if expected.turned else off)
        if not -(1 << 15) <= code < 1 << 15:
            raise ValueError(f"a block of {len(stream)} bytes holds a code that 16 bits do not")
        out[t, i] = code
    reader.end()


def _walk(codes: Tensor, conditions: Conditions) -> Iterator[tuple[tuple[int, int], Expected, int]]:
    """Each code's place, its expectation, and the code, which is looked up again once it has been used."""
    exponents, scales, weights, loudness = conditions
    rows = zip(scales.tolist(), weights.tolist(), strict=True)
    components = [Component(scale, (last, mean), power(scale)) for scale, (last, mean) in rows]
    for t, exponent in enumerate(exponents.tolist()):
        loud = int(loudness[t])
        for i, component in enumerate(components):
            expected = expect(component, loud, exponent - 32)
            yield (t, i), expected, int(codes[t, i])
            loud = learn(component, loud, exponent - 32, int(codes[t, i]), expected)
        loudness[t] = loud


def _symbol(expected: Expected, code: int) -> tuple[int, list[tuple[int, int]]]:
    """The symbol, and the bits that follow without a model, as pairs of a value and its number of bits."""
    off = expected.middle - code if expected.turned else code - expected.middle
    high, low = off >> expected.low, (off & ((1 << expected.low) - 1), expected.low)
    if abs(high) < 16:
        return high + 16, [low]
    excess = abs(high) - 15
    width = excess.bit_length() - 1
    return (32 if high > 0 else 0), [(width, 4), (excess - (1 << width), width), low]


class _Reader:
    def __init__(self, content: bytes) -> None:
        if len(content) < 8 or len(content) % 4:
            raise ValueError(f"a block of {len(content)} bytes cannot hold a state and words")
        self.content, self.read = content, 8
        self.x = int.from_bytes(content[:8], "little")

    def slot(self) -> int:
        return self.x & ((1 << PRECISION) - 1)

    def take(self, start: int, share: int) -> None:
        x = share * (self.x >> PRECISION) + self.slot() - start
        if x < LOWEST:
            if self.read == len(self.content):
                raise ValueError(f"a block of {len(self.content)} bytes ends too early")
            x = x << 32 | int.from_bytes(self.content[self.read : self.read + 4], "little")
            self.read += 4
        self.x = x

    def bits(self, n: int) -> int:
        value = self.slot() >> (PRECISION - n)
        if n:
            self.take(value << (PRECISION - n), 1 << (PRECISION - n))
        return value

    def end(self) -> None:
        if self.read != len(self.content) or self.x != LOWEST:
            raise ValueError(f"a block of {len(self.content)} bytes does not end where it was begun")
