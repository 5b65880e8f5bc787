"""Dequantization of min–max groups."""

from __future__ import annotations

from torch import Tensor


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor) -> None:
    """Write ``codes * scale + zero``, taken in float32, into ``out``.

    ``codes`` [H, T, D] uint8; ``out`` [H, T, D] in any float type, of any strides; ``scale`` and ``zero`` are
    float16 and as ``codes``, but for ``axis`` (1 or 2), where one entry serves ``group`` neighbours and the
    last may serve fewer. Multiplied, rounded, added, rounded: implementations agree to the bit.
    """
    length = codes.shape[axis]
    spread_scale = scale.float().repeat_interleave(group, dim=axis).narrow(axis, 0, length)
    spread_zero = zero.float().repeat_interleave(group, dim=axis).narrow(axis, 0, length)
    out.copy_(codes.float() * spread_scale + spread_zero)
