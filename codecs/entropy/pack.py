"""Fixed-length packing: each code takes as many bits as its alphabet needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvtool.codecs.spec import Array, Payload, Spec, check_codes
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels import dispatch


@register
@dataclass(frozen=True)
class Pack(Stage):
    """Every uint8 tensor with a known number of ``levels`` becomes 1-D uint8, packed; the rest passes.

    The layout of the bytes is ``kvtool.kernels.reference``'s.
    """

    name: ClassVar[str] = "pack"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "entropy"
    on_any_device: ClassVar[bool] = True

    def plan(self, spec: Spec) -> Spec:
        return spec.with_arrays({name: self._packed(array) for name, array in spec.arrays.items()})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        out = dict(x)
        for name, array in spec.arrays.items():
            if bits := _bits(array):
                check_codes(f"{self.label}: {name}", x[name], array.levels or 0)
                out[name] = dispatch.pack(x[name].reshape(-1), bits)
        return out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        out = dict(y)
        for name, array in spec.arrays.items():
            if bits := _bits(array):
                out[name] = dispatch.unpack(y[name], array.numel, bits).view(array.shape)
                if array.levels != 1 << bits:
                    check_codes(f"{self.label}: {name}", out[name], array.levels or 0)
        return out

    def _packed(self, array: Array) -> Array:
        bits = _bits(array)
        return Array((dispatch.packed_size(array.numel, bits),), torch.uint8) if bits else array


def _bits(array: Array) -> int:
    """Bits for each code, or 0 for a tensor that is not packed."""
    return array.bits if array.dtype == torch.uint8 and 1 <= (array.levels or 0) <= 256 else 0
