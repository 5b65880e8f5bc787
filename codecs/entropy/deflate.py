"""Packed codes and everything beside them as one DEFLATE stream."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format import container
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

GROWTH = 1032
"""The most bytes that one byte of a DEFLATE stream can expand to."""


@register
@dataclass(frozen=True)
class Deflate(Stage):
    """Everything becomes ``x`` [n] uint8: the tensors as ``Pack`` leaves them, by name, one zlib stream (RFC 1950).

    Where that is no shorter, the bytes are stored raw: a stream as long as its content is taken for raw. ``level`` is
    zlib's.
    """

    name: ClassVar[str] = "deflate"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "entropy"

    level: int = 6

    def __post_init__(self) -> None:
        self.require(self.level in range(1, 10), "level", self.level, "1 to 9")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(level=9)

    def plan(self, spec: Spec) -> Spec:
        return spec.with_arrays({"x": Array((Pack().plan(spec).nbytes,), torch.uint8, at_most=True)})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        packed = Pack().encode({name: x[name] for name in spec.arrays}, spec)
        raw = b"".join(container.raw_bytes(packed[name]) for name in sorted(packed))
        stream = zlib.compress(raw, self.level)
        return {"x": container.byte_tensor(stream if len(stream) < len(raw) else raw)}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        planned = Pack().plan(spec)
        content = y["x"]
        # A stream as long as its content is raw.
        if len(content) != planned.nbytes:
            content = container.byte_tensor(self._inflated(container.raw_bytes(content), planned.nbytes))
        packed, start = {}, 0
        for name, array in sorted(planned.arrays.items()):
            # Copied, since entries of two bytes may start at an odd address.
            own = torch.empty(array.nbytes, dtype=torch.uint8).copy_(content[start : start + array.nbytes])
            packed[name] = own.view(array.dtype).view(array.shape)
            start += array.nbytes
        return Pack().decode(packed, spec)

    def _inflated(self, stream: memoryview, nbytes: int) -> bytes:
        if nbytes > GROWTH * len(stream):
            raise CodecError(f"{self.label}: x: {len(stream)} bytes of DEFLATE cannot hold {nbytes}")
        reader = zlib.decompressobj()
        try:
            content = reader.decompress(stream, nbytes)
            # The checksum may be still to come where the content is complete.
            more = reader.decompress(reader.unconsumed_tail, 1)
        except zlib.error as error:
            raise CodecError(f"{self.label}: x: {error}") from None
        if more or len(content) != nbytes or not reader.eof or reader.unused_data:
            raise CodecError(f"{self.label}: x: a stream that does not end at {nbytes} bytes")
        return content
