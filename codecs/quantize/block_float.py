"""Block floating point: neighbouring channels share an exponent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvtool.codecs.float16 import saturated
from kvtool.codecs.spec import Array, Payload, Spec, check_codes
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

LEAST_EXPONENT = -118
"""So that every step is a normal float32; smaller entries are rounded to its multiples all the same."""


@register
@dataclass(frozen=True)
class BlockFloat(Stage):
    """``x`` [..., T, D] float32, float16 or bfloat16 becomes

    - ``exponents`` [..., T, ⌈D/block⌉] int8: e, for each ``block`` channels of a token, such that the largest
      magnitude among them is in [2**e, 2**(e + 1)); the last block may be short;
    - ``codes`` [..., T, D] uint8, ``bits`` bits each: an entry's mantissa, in two's complement plus
      2**(bits - 1).

    An entry is read back as ``(code - 2**(bits - 1)) * step`` with step = 2**(e + 2 - bits). The mantissa is
    the nearest; where that takes one bit more, it is the largest there is.
    """

    name: ClassVar[str] = "block-float"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    bits: int = 4
    block: int = 32

    def __post_init__(self) -> None:
        self.require(self.bits in range(2, 9), "bits", self.bits, "2 to 8")
        self.require(self.block in range(1, 1 << 31), "block", self.block, "1 to 2**31 - 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(bits=2, block=5), cls(bits=8, block=1)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "tokens", "channels")
        arrays = {
            "codes": Array(x.shape, torch.uint8, levels=1 << self.bits),
            "exponents": Array((*x.shape[:-1], -(-x.shape[-1] // self.block)), torch.int8),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        blocks = self._blocks(x["x"].float())
        # frexp's fraction is in [0.5, 1).
        exponents = (blocks.abs().amax(-1).frexp().exponent - 1).clamp_(min=LEAST_EXPONENT)
        half = 1 << (self.bits - 1)
        mantissas = (blocks * _power(-self._step(exponents))).round_().clamp_(-half, half - 1)
        codes = (mantissas + half).to(torch.uint8).flatten(-2)[..., : x["x"].shape[-1]].contiguous()
        return spec.beside_x(x) | {"codes": codes, "exponents": exponents.to(torch.int8)}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array, codes = spec.arrays["x"], y["codes"]
        check_codes(f"{self.label}: codes", codes, 1 << self.bits)
        mantissas = self._blocks(codes.float() - (1 << (self.bits - 1)))
        x = (mantissas * _power(self._step(y["exponents"].int()))).flatten(-2)[..., : array.shape[-1]]
        return spec.beside_x(y) | {"x": saturated(x, array.dtype).contiguous()}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The widest step, since the largest mantissa is used for a value one step above it."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        largest = tensor.abs().amax().item()
        rounding = torch.finfo(tensor.dtype)
        exponent = torch.tensor(largest).frexp().exponent - 1
        step = _power(self._step(exponent.clamp_(min=LEAST_EXPONENT))).item()
        return inner + step + largest * rounding.eps + rounding.smallest_normal * rounding.eps

    def _blocks(self, entries: Tensor) -> Tensor:
        """``entries`` [..., D] as [..., blocks, block]; zeros fill the last. A block is no longer than D."""
        channels = entries.shape[-1]
        block = min(self.block, max(channels, 1))
        return pad(entries, (0, -channels % block)).reshape(*entries.shape[:-1], -(-channels // block), block)

    def _step(self, exponents: Tensor) -> Tensor:
        """The exponents of the steps, [..., blocks, 1], of int32 ``exponents``."""
        return (exponents + (2 - self.bits)).unsqueeze(-1)


def _power(exponents: Tensor) -> Tensor:
    """``2 ** exponents``, int32 to float32, exact on every machine; below float32's normal numbers, the least."""
    return ((exponents.clamp(-126, 127) + 127) << 23).view(torch.float32)
