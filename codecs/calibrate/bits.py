"""Bits for blocks of components, so that the squared error is least under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvtool.codecs.calibrate.bit_allocation import WHOLE, Run
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Spec

SIZES = (16, 64, 256, 1024)
"""Components in a block that has codes; every one of 16 bits is a block of its own."""
WIDTHS = (1, 2, 4, 8)
"""Bits of codes. No code crosses a byte, so that a byte-wise coder such as DEFLATE sees it whole. At equal error that saves
more than the widths in between would."""
UNIT = 16
"""Bits that budgets and costs are multiples of: all blocks' are."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Choice:
    """A kind of block: what it costs, and its squared error at the starts that are multiples of ``step``."""

    size: int
    bits: int
    cost: int
    step: int
    errors: Floats


def allocate(x: Tensor, budgets: Mapping[int, int]) -> dict[int, list[Run]]:
    """For each budget, in units of 16 bits for a token, the runs of blocks of components of ``x`` [T, C], a sample.

    Dynamic programming over components and bits: what the first components cost at the least for each budget
    follows from where their last block starts. Blocks cover the first components, the others get no bits. A
    block starts at a multiple of a sixteenth of its size. Errors are measured on ``x``.
    """
    components, most = x.shape[1], max(budgets.values(), default=0)
    choices = [choice for choice in _choices(x) if choice.cost <= most]
    least = np.full((components + 1, most + 1), np.inf, np.float32)
    least[0] = 0
    chosen = np.zeros((components + 1, most + 1), np.uint8)
    for end in range(1, components + 1):
        for number, choice in enumerate(choices):
            start = end - choice.size
            if start < 0 or start % choice.step:
                continue
            error = least[start, : most + 1 - choice.cost] + choice.errors[start // choice.step]
            better = error < least[end, choice.cost :]
            least[end, choice.cost :][better] = error[better]
            chosen[end, choice.cost :][better] = number
    energy = x.double().square().sum(0)
    dropped = torch.cat([energy, energy.new_zeros(1)]).flip(0).cumsum(0).flip(0).numpy()
    found = {}
    for key, budget in budgets.items():
        end, blocks = int(np.argmin(least[:, budget] + dropped)), []
        while end:
            choice = choices[chosen[end, budget]]
            blocks.append((choice.size, choice.bits))
            end, budget = end - choice.size, budget - choice.cost
        found[key] = [Run(len(list(run)), *kind) for kind, run in groupby(reversed(blocks))]
    return found


def _choices(x: Tensor) -> Sequence[_Choice]:
    whole = (x - x.half().float()).square().sum(0).numpy()
    found = [_Choice(1, WHOLE, WHOLE // UNIT, 1, whole)]
    for size in SIZES:
        step = size // SIZES[0]
        if size <= x.shape[1]:
            windows = x.unfold(1, size, step).contiguous()
            for bits in WIDTHS:
                cost = (32 + size * bits) // UNIT
                found.append(_Choice(size, bits, cost, step, _errors(windows, bits)))
    return found


def _errors(windows: Tensor, bits: int) -> Floats:
    """The squared error [n] of quantizing ``windows`` [T, n, size], one block for each token."""
    stage = Group(bits=bits, group=windows.shape[2], axis="channel")
    x = windows.flatten(1)[None]
    spec = Spec.of(x)
    off = stage.decode(stage.encode({"x": x}, spec), spec)["x"] - x
    found: npt.NDArray[Any] = off.view(windows.shape).square().sum((0, 2)).numpy()
    return found
