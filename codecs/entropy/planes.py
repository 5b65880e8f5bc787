"""Byte planes under zstd: lossless for any dtype."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import zstandard
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.format import container
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

ZSTD_BLOCK_BYTES = 1 << 17
ZSTD_BLOCK_LEAST = 4


@register
@dataclass(frozen=True)
class Planes(Stage):
    """Every tensor of k-byte entries becomes 1-D uint8: k little-endian uint64 lengths, then k blocks.

    Block i holds byte i of every entry (little-endian, so the last one has sign and exponent), as one zstd
    frame with checksum, or as it is where the frame would be no shorter: a block as long as its plane is raw.
    ``level`` is zstd's. Neighbouring exponents are alike and mantissas are noise; apart, the first compress.
    """

    name: ClassVar[str] = "planes"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "entropy"

    level: int = 3

    def __post_init__(self) -> None:
        self.require(self.level in range(1, 23), "level", self.level, "1 to 22")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(level=19)

    def plan(self, spec: Spec) -> Spec:
        arrays = {
            name: Array((array.nbytes + 8 * array.dtype.itemsize,), torch.uint8, at_most=True)
            for name, array in spec.arrays.items()
        }
        return spec.with_arrays(arrays)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        return {name: self._encode(x[name]) for name in spec.arrays}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return {name: self._decode(name, y[name], array) for name, array in spec.arrays.items()}

    def _encode(self, tensor: Tensor) -> Tensor:
        size = tensor.dtype.itemsize
        planes = np.frombuffer(container.raw_bytes(tensor), np.uint8).reshape(-1, size)
        compressor = zstandard.ZstdCompressor(level=self.level, write_checksum=True)
        blocks = []
        for i in range(size):
            plane = planes[:, i].tobytes()
            frame = compressor.compress(plane)
            blocks.append(frame if len(frame) < len(plane) else plane)
        lengths = struct.pack(f"<{size}Q", *map(len, blocks))
        return container.byte_tensor(lengths + b"".join(blocks))

    def _decode(self, name: str, tensor: Tensor, array: Array) -> Tensor:
        size, entries = array.dtype.itemsize, array.numel
        data = container.raw_bytes(tensor)
        if len(data) < 8 * size:
            raise CodecError(f"{self.label}: {name}: {len(data)} bytes are too few for {size} lengths")
        lengths = struct.unpack_from(f"<{size}Q", data)
        if sum(lengths) != (held := len(data) - 8 * size):
            raise CodecError(f"{self.label}: {name}: blocks of {list(lengths)} bytes in {held}")
        # All blocks are checked before memory is allocated for what they claim to hold.
        blocks, start = [], 8 * size
        for length in lengths:
            blocks.append(data[start : start + length])
            if length != entries:
                self._check_frame(name, blocks[-1], entries)
            start += length
        planes = np.empty((entries, size), np.uint8)
        for i, block in enumerate(blocks):
            planes[:, i] = np.frombuffer(self._plane(name, block, entries), np.uint8)
        return torch.from_numpy(planes.reshape(-1)).view(array.dtype).view(array.shape)

    def _check_frame(self, name: str, block: memoryview, entries: int) -> None:
        try:
            frame = zstandard.get_frame_parameters(block)
        except zstandard.ZstdError as error:
            raise CodecError(f"{self.label}: {name}: {error}") from None
        if frame.content_size != entries or not frame.has_checksum or frame.dict_id:
            held = f"{frame.content_size} bytes, expected {entries} with checksum"
            raise CodecError(f"{self.label}: {name}: a frame of {held}")
        if entries > len(block) // ZSTD_BLOCK_LEAST * ZSTD_BLOCK_BYTES:
            raise CodecError(f"{self.label}: {name}: {len(block)} bytes of zstd cannot hold {entries}")

    def _plane(self, name: str, block: memoryview, entries: int) -> bytes | memoryview:
        if len(block) == entries:
            return block
        try:
            plane = zstandard.ZstdDecompressor().decompress(block, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecError(f"{self.label}: {name}: {error}") from None
        if len(plane) != entries:
            raise CodecError(f"{self.label}: {name}: a frame gave {len(plane)} bytes, expected {entries}")
        return plane
