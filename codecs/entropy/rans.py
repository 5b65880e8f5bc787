"""rANS under a model that is chosen by size."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvtool.codecs.block_coder import Coding, read_lengths
from kvtool.codecs.entropy.planes import Planes
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.container import byte_tensor
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

MAIN = ("codes", "x")
"""The tensors that a range of tokens cuts; the others have no axis of tokens."""


@register
@dataclass(frozen=True)
class Rans(Stage):
    """Everything becomes ``x`` [n] uint8: a little-endian uint32 length for each tensor, by name, then their bytes.

    A uint8 tensor with a known number of ``levels`` is coded as ``kvtool.codecs.block_coder`` says, in blocks of
    ``block`` tokens that can be decoded apart; any other as ``Planes(level)`` does. One tensor instead of many,
    since a name, a shape and a digest take as much room as a short tensor.
    """

    name: ClassVar[str] = "rans"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "entropy"
    on_any_device: ClassVar[bool] = True

    block: int = 1024
    level: int = 3

    def __post_init__(self) -> None:
        self.require(self.block in range(1, 1 << 20), "block", self.block, "1 to 2**20 - 1")
        self.require(self.level in range(1, 23), "level", self.level, "1 to 22")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(block=16)

    def plan(self, spec: Spec) -> Spec:
        bounds = []
        for name, array in spec.arrays.items():
            if array.levels is None:
                bounds.append(self._planes.plan(Spec({"x": array})).nbytes)
            else:
                self.require(array.dtype == torch.uint8, f"dtype of {name}", array.dtype, "uint8")
                self.require(1 <= array.levels <= 256, f"levels of {name}", array.levels, "1 to 256")
                bounds.append(Coding(array, self.block).bound)
        total = sum(bounds) + 4 * len(bounds)
        self.require(total < 1 << 32, "bytes of the payload", total, "less than 2**32")
        return spec.with_arrays({"x": Array((total,), torch.uint8, at_most=True)})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        sections = []
        for name, array in sorted(spec.arrays.items()):
            if array.levels is None:
                sections.append(self._planes.encode({"x": x[name]}, Spec({"x": array}))["x"])
                continue
            try:
                sections.append(Coding(array, self.block).encode(x[name]))
            except CodecError as error:
                raise CodecError(f"{self.label}: {name}: {error}") from None
        lengths = struct.pack(f"<{len(sections)}I", *map(len, sections))
        return {"x": torch.cat([byte_tensor(lengths), *sections])}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return self.decode_tokens(y, spec, None)

    def decode_tokens(self, y: Payload, spec: Spec, tokens: range | None) -> Payload:
        data, device, out = y["x"].cpu(), y["x"].device, {}
        lengths, start = read_lengths(data, len(spec.arrays), 0)
        if sum(lengths) != len(data) - start:
            raise CodecError(f"{self.label}: x: tensors of {lengths} bytes in {len(data) - start}")
        for (name, array), length in zip(sorted(spec.arrays.items()), lengths, strict=True):
            section = data[start : start + length]
            start += length
            try:
                if array.levels is None:
                    inner = Spec({"x": array})
                    self._planes.plan(inner).check({"x": section}, name)
                    out[name] = self._planes.decode({"x": section}, inner)["x"].to(device)
                else:
                    wanted = tokens if name in MAIN else None
                    out[name] = Coding(array, self.block).decode(section, wanted, device)
            except CodecError as error:
                raise CodecError(f"{self.label}: {name}: {error}") from None
        return out

    @property
    def _planes(self) -> Planes:
        return Planes(level=self.level)
