"""Reference kernels in plain torch: slow and obvious. Every other implementation is compared with them."""

from kvtool.kernels.reference.attention import Packed, packed_attention
from kvtool.kernels.reference.context import context_count, context_decode, context_encode
from kvtool.kernels.reference.context_model import EXPONENTS, Conditions
from kvtool.kernels.reference.dequantize import dequantize
from kvtool.kernels.reference.hadamard import hadamard
from kvtool.kernels.reference.packing import pack, packed_size, sections, unpack
from kvtool.kernels.reference.rans import rans_decode, rans_encode
from kvtool.kernels.reference.rope import Layout, angles, rotate
from kvtool.kernels.reference.wide import wide_decode, wide_encode

__all__ = [
    "EXPONENTS",
    "Conditions",
    "Layout",
    "Packed",
    "angles",
    "context_count",
    "context_decode",
    "context_encode",
    "dequantize",
    "hadamard",
    "pack",
    "packed_attention",
    "packed_size",
    "rans_decode",
    "rans_encode",
    "rotate",
    "sections",
    "unpack",
    "wide_decode",
    "wide_encode",
]
