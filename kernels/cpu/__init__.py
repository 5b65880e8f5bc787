"""Kernels for the CPU, in torch's own vector operations."""

from kvtool.kernels.cpu.bits import pack, packed_size, unpack
from kvtool.kernels.cpu.groups import dequantize

__all__ = ["dequantize", "pack", "packed_size", "unpack"]
