"""Chooses an implementation of each kernel by where its input lies."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from kvtool.kernels import cpu, reference
from kvtool.kernels.reference import packed_size

__all__ = ["Kernels", "dequantize", "implementations", "pack", "packed_size", "unpack"]


class Kernels(Protocol):
    """One implementation of every kernel; ``kvtool.kernels.reference`` documents what each computes."""

    def pack(self, codes: Tensor, bits: int) -> Tensor: ...
    def unpack(self, packed: Tensor, n: int, bits: int) -> Tensor: ...
    def dequantize(
        self, codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor
    ) -> None: ...


def implementations() -> dict[str, Kernels]:
    """Every implementation that can run here, by name. The first is the reference."""
    return {"reference": reference, "cpu": cpu}


def _for(tensor: Tensor) -> Kernels:
    # The CPU kernels are torch operations throughout, so they run on any device until one has its own.
    return cpu


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` [n] uint8, each below ``2 ** bits``, as ``packed_size(n, bits)`` bytes."""
    return _for(codes).pack(codes, bits)


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """The ``n`` codes [n] uint8 that ``pack`` made into ``packed`` [packed_size(n, bits)] uint8."""
    return _for(packed).unpack(packed, n, bits)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor) -> None:
    """Write ``codes * scale + zero`` into ``out``; ``kvtool.kernels.reference.dequantize`` says more."""
    _for(out).dequantize(codes, scale, zero, axis, group, out)
