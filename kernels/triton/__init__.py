"""Kernels for the GPU, in Triton. Importing them needs triton, running them a GPU or TRITON_INTERPRET=1."""

from kvtool.kernels.triton.attention import packed_attention
from kvtool.kernels.triton.dequantize import dequantize
from kvtool.kernels.triton.hadamard import hadamard
from kvtool.kernels.triton.packing import pack, unpack
from kvtool.kernels.triton.rans import rans_decode, rans_encode
from kvtool.kernels.triton.rope import rotate
from kvtool.kernels.triton.wide import wide_decode, wide_encode

__all__ = [
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
