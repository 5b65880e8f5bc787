"""Chooses an implementation of each kernel by its input's device."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Protocol, get_args

import torch
from torch import Tensor

from kvtool.kernels import cpu, reference
from kvtool.kernels.reference import Conditions, Layout, Packed, angles, packed_size

__all__ = [
    "Conditions",
    "Kernels",
    "Layout",
    "Packed",
    "angles",
    "context_count",
    "context_decode",
    "context_encode",
    "dequantize",
    "hadamard",
    "implementations",
    "pack",
    "packed_attention",
    "packed_size",
    "rans_decode",
    "rans_encode",
    "rotate",
    "unpack",
    "wide_decode",
    "wide_encode",
]


class Kernels(Protocol):
    """One implementation of every kernel; ``kvtool.kernels.reference`` documents what each computes.

    ``context``'s are the exception: the reference and the CPU have them, and no GPU, since each code waits for the one before
    it.
    """

    def pack(self, codes: Tensor, bits: int) -> Tensor: ...
    def unpack(self, packed: Tensor, n: int, bits: int) -> Tensor: ...
    def dequantize(
        self, codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor
    ) -> None: ...
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, out: Tensor) -> None: ...
    def hadamard(self, x: Tensor, out: Tensor) -> None: ...
    def packed_attention(
        self, query: Tensor, packed: Packed, key: Tensor, value: Tensor, mask: Tensor, scaling: float
    ) -> Tensor: ...
    def rans_encode(
        self, codes: Tensor, cumulative: Tensor, table: Tensor, precision: int, lanes: int
    ) -> Tensor: ...
    def rans_decode(
        self,
        stream: Tensor,
        blocks: Tensor,
        cumulative: Tensor,
        table: Tensor,
        precision: int,
        lanes: int,
        out: Tensor,
    ) -> None: ...
    def wide_encode(
        self, codes: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor
    ) -> Tensor: ...
    def wide_decode(
        self,
        stream: Tensor,
        exponents: Tensor,
        scales: Tensor,
        weights: Tensor,
        cumulative: Tensor,
        out: Tensor,
    ) -> None: ...


def implementations() -> dict[str, Kernels]:
    """Every implementation that can run here, by name. The first is the reference."""
    available: dict[str, Kernels] = {"reference": reference, "cpu": cpu}
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if find_spec("triton") and (interpreted or torch.cuda.is_available()):
        available["triton"] = _triton()
    return available


def _triton() -> Kernels:
    # Triton is heavy and not everywhere: it is imported where a GPU is used.
    from kvtool.kernels import triton

    return triton


def _for(tensor: Tensor) -> Kernels:
    """Raises ValueError for a device that has no kernels."""
    if tensor.device.type == "cpu":
        return cpu
    if tensor.device.type == "cuda" and find_spec("triton"):
        return _triton()
    raise ValueError(f"no kernels for a tensor on {tensor.device}, expected one on the CPU")


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` [n] uint8, each below ``2 ** bits``, as ``packed_size(n, bits)`` bytes."""
    return _for(codes).pack(codes, bits)


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """The ``n`` codes [n] uint8 that ``pack`` made into ``packed`` [packed_size(n, bits)] uint8."""
    return _for(packed).unpack(packed, n, bits)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, out: Tensor) -> None:
    """Write ``codes * scale + zero`` into ``out``; ``kvtool.kernels.reference.dequantize`` says more."""
    _for(out).dequantize(codes, scale, zero, axis, group, out)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, out: Tensor) -> None:
    """Write ``x`` rotated by ``angles`` into ``out``; ``kvtool.kernels.reference.rotate`` says more.

    Raises ValueError for an unknown layout and for more angles than ``x`` has pairs of channels.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(get_args(Layout))}")
    if 2 * cos.shape[1] > x.shape[2]:
        raise ValueError(f"{cos.shape[1]} angles for {x.shape[2]} channels, expected at most one for two")
    _for(out).rotate(x, cos, sin, layout, out)


def hadamard(x: Tensor, out: Tensor) -> None:
    """Write the Walsh–Hadamard transform of ``x``'s rows; ``kvtool.kernels.reference.hadamard`` says more.

    Raises ValueError for rows whose length is not a power of two.
    """
    if x.shape[1].bit_count() != 1:
        raise ValueError(f"rows of {x.shape[1]} entries, expected a power of two")
    _for(out).hadamard(x, out)


def packed_attention(
    query: Tensor, packed: Packed, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Attention to packed tokens and dense ones; ``kvtool.kernels.reference.packed_attention`` says more."""
    if query.is_cuda and find_spec("triton") and not (torch.is_grad_enabled() and query.requires_grad):
        return _triton().packed_attention(query, packed, key, value, mask, scaling)
    # What the CPU has are torch's own operations: they run on any device.
    return cpu.packed_attention(query, packed, key, value, mask, scaling)


def rans_encode(codes: Tensor, cumulative: Tensor, table: Tensor, precision: int, lanes: int) -> Tensor:
    """``codes`` [A, T, B] uint8 as one block of bytes; ``kvtool.kernels.reference.rans`` has the format."""
    return _for(codes).rans_encode(codes, cumulative, table, precision, lanes)


def rans_decode(
    stream: Tensor, blocks: Tensor, cumulative: Tensor, table: Tensor, precision: int, lanes: int, out: Tensor
) -> None:
    """Decode ``blocks`` [N, 4] int64 (first byte, end byte, first token, end token) of ``stream`` into ``out``.

    Raises ValueError for a block outside of ``stream``, and for one that ``rans_encode`` has not made.
    """
    first, end, begin, stop = blocks.unbind(1)
    inside = (blocks >= 0).all() and (end <= len(stream)).all() and (stop <= out.shape[1]).all()
    if not inside or (first > end).any() or (begin > stop).any():
        raise ValueError(f"blocks {blocks.tolist()} of {len(stream)} bytes and {out.shape[1]} tokens")
    _for(out).rans_decode(stream, blocks, cumulative, table, precision, lanes, out)


def context_count(codes: Tensor, conditions: Conditions, counts: Tensor) -> None:
    """Add to ``counts`` how often each symbol stands in each table; ``kvtool.kernels.reference.context`` says more."""
    _check_coded(codes, conditions.exponents)
    cpu.context_count(codes, conditions, counts)


def context_encode(codes: Tensor, conditions: Conditions, cumulative: Tensor) -> Tensor:
    """``codes`` [T, C] int16 as one block of bytes; ``kvtool.kernels.reference.context`` has the format."""
    _check_coded(codes, conditions.exponents)
    return cpu.context_encode(codes, conditions, cumulative)


def context_decode(stream: Tensor, conditions: Conditions, cumulative: Tensor, out: Tensor) -> None:
    """Decode ``stream``, one block, into ``out`` [T, C] int16.

    Raises ValueError for a block that ``context_encode`` has not made with the same.
    """
    _check_coded(out, conditions.exponents)
    cpu.context_decode(stream, conditions, cumulative, out)


def wide_encode(
    codes: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor
) -> Tensor:
    """``codes`` [T, C] int16 as one block of bytes; ``kvtool.kernels.reference.wide`` has the format."""
    _check_exponents(exponents)
    return _for(codes).wide_encode(codes.contiguous(), exponents, scales, weights, cumulative)


def wide_decode(
    stream: Tensor, exponents: Tensor, scales: Tensor, weights: Tensor, cumulative: Tensor, out: Tensor
) -> None:
    """Decode ``stream``, one block, into ``out`` [T, C] int16.

    Raises ValueError for a block that ``wide_encode`` has not made with the same.
    """
    _check_exponents(exponents)
    _for(out).wide_decode(stream, exponents, scales, weights, cumulative, out)


def _check_coded(codes: Tensor, exponents: Tensor) -> None:
    """Raises ValueError for a device that has no kernels, and for exponents that they do not take."""
    if codes.device.type != "cpu":
        raise ValueError(f"no kernels for a tensor on {codes.device}, expected one on the CPU")
    _check_exponents(exponents)


def _check_exponents(exponents: Tensor) -> None:
    if len(exponents) and (largest := int(exponents.max())) > reference.EXPONENTS:
        raise ValueError(f"exponent {largest}, expected at most {reference.EXPONENTS}")
