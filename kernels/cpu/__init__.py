"""Kernels for the CPU: loops that numba compiles to vector instructions, and products of torch's."""

from kvtool.kernels.cpu.attention import packed_attention
from kvtool.kernels.cpu.context import context_count, context_decode, context_encode
from kvtool.kernels.cpu.dequantize import dequantize
from kvtool.kernels.cpu.hadamard import hadamard
from kvtool.kernels.cpu.packing import pack, unpack
from kvtool.kernels.cpu.rans import rans_decode, rans_encode
from kvtool.kernels.cpu.rope import rotate
from kvtool.kernels.cpu.wide import wide_decode, wide_encode

__all__ = [
    "context_count",
    "context_decode",
    "context_encode",
    "dequantize",
    "hadamard",
    "pack",
    "packed_attention",
    "rans_decode",
    "rans_encode",
    "rotate",
    "unpack",
    "wide_decode",
    "wide_encode",
]
