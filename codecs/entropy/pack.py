"""Fixed-length packing: each code takes as many bits as its alphabet needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvtool.codecs.errors import CodecError
from kvtool.codecs.spec import Array, Payload, Spec
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

    def plan(self, spec: Spec) -> Spec:
        return spec.with_arrays({name: self._packed(array) for name, array in spec.arrays.items()})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        out = dict(x)
        for name, array in spec.arrays.items():
            if bits := _bits(array):
                self._check(name, x[name], array)
                out[name] = dispatch.pack(x[name].reshape(-1), bits)
        return out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        out = dict(y)
        for name, array in spec.arrays.items():
            if bits := _bits(array):
                out[name] = dispatch.unpack(y[name], array.numel, bits).view(array.shape)
                if array.levels != 1 << bits:
                    self._check(name, out[name], array)
        return out

    def _packed(self, array: Array) -> Array:
        bits = _bits(array)
        return Array((dispatch.packed_size(array.numel, bits),), torch.uint8) if bits else array

    def _check(self, name: str, codes: torch.Tensor, array: Array) -> None:
        if codes.numel() and (largest := int(codes.max())) >= (array.levels or 0):
            raise CodecError(
                f"entropy stage {self.name!r}: {name} holds code {largest}, expected below {array.levels}"
            )


def _bits(array: Array) -> int:
    """Bits for each code, or 0 for a tensor that is not packed."""
    if array.dtype != torch.uint8 or array.levels is None or not 1 <= array.levels <= 256:
        return 0
    return array.bits
