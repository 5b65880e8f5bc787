"""Conversions to 16 bits: side tensors such as scales and windows, and the caches themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError

if TYPE_CHECKING:
    from kvtool.codecs.stage import Stage

FLOAT16 = torch.finfo(torch.float16)
SMALLEST = FLOAT16.smallest_normal * FLOAT16.eps
"""The smallest positive float16."""


def window_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit dtype that entries of ``dtype`` are stored in: their own if it has 16 bits, else float16."""
    return dtype if dtype.itemsize == 2 else torch.float16


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` clamped to the range of ``dtype`` and converted; ``x`` is overwritten.

    Decoding needs it: an error may carry an entry past the range of a float16 cache, and infinity would spread.
    """
    limit = torch.finfo(dtype).max
    return x.clamp_(-limit, limit).to(dtype)


def to_float16(stage: Stage, field: str, values: Tensor) -> Tensor:
    """``values`` rounded to float16. Raises CodecError, naming the stage, for what float16 cannot hold."""
    rounded = values.to(torch.float16)
    overflow = ~torch.isfinite(rounded)
    if overflow.any():
        worst = values[overflow].flatten()[0].item()
        raise CodecError(f"{stage.label}: {field} is {worst:.6g}, beyond float16's {FLOAT16.max:g}")
    return rounded


def to_window(stage: Stage, field: str, values: Tensor) -> Tensor:
    """``values`` in their ``window_dtype``, contiguous. Raises CodecError as ``to_float16`` does."""
    return values.contiguous() if values.dtype.itemsize == 2 else to_float16(stage, field, values)


def window_error(x: Tensor) -> float:
    """The largest absolute error of entries of ``x`` that are stored in its ``window_dtype``."""
    if x.dtype.itemsize == 2 or not x.numel():
        return 0.0
    return x.abs().amax().item() * FLOAT16.eps + FLOAT16.smallest_normal
