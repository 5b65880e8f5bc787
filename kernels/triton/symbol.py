"""The symbol that a slot of a rANS state stands for."""

from __future__ import annotations

import triton.language as tl
from kvtool.kernels.triton.jit import kernel


@kernel
def symbol_of(
    bounds: tl.tensor,
    slot: tl.tensor,
    levels: int,
    PRECISION: tl.constexpr,
    HALVINGS: tl.constexpr,
    LANES: tl.constexpr,
) -> tl.tensor:
    """[LANES] int32: of ``levels`` symbols, the last that begins at ``slot`` [LANES] or before, by ``bounds``.

    Halved until found: a row's table from slots to codes would be larger than what a block has of the row.
    """
    symbol = tl.full((LANES,), 0, tl.int32)
    for i in tl.static_range(HALVINGS):
        middle = symbol + (1 << (HALVINGS - 1 - i))
        bound = tl.load(bounds + middle, mask=middle < levels, other=1 << PRECISION)
        symbol = tl.where(bound <= slot, middle, symbol)
    return symbol
