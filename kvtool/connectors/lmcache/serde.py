"""kvtool's codecs as a serde of LMCache's, registered as ``kvtool`` when this is imported.

Of LMCache 0.5.6 it relies on ``lmcache.v1.distributed.serde``: ``Serializer.serialize(src, dst, key) -> int``,
``Serializer.estimate_serialized_size(layout_desc) -> int``, ``Deserializer.deserialize(src, dst, key)``, and
``register_serde_factory(name, factory)``. What they raise is logged by ``AsyncSerdeProcessor``; a store then fails, and a
load is a miss. ``key`` is an ``ObjectKey`` with ``chunk_hash``, ``model_name``, ``kv_rank``, ``object_group_id`` and
``cache_salt``: no token ids, no positions. ``dst.tensor`` of a byte buffer is uint8 of the estimated size, and after a load
it holds whatever the adapter read, with other bytes after it.
"""

from __future__ import annotations

from typing import Any

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.serde import (
    AsyncSerdeProcessor,
    Deserializer,
    SerdeProcessor,
    Serializer,
    get_registered_serde_types,
    register_serde_factory,
)
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.multiprocess.token_hasher import TokenHasher
from torch import Tensor

from kvtool.codecs import CodecError
from kvtool.connectors.lmcache.chunk import ChunkKey
from kvtool.connectors.lmcache.coder import PAGE, Coder
from kvtool.connectors.lmcache.known_chunks import HashChunks
from kvtool.connectors.lmcache.options import SerdeOptions

NAME = "kvtool"


class ChunkSerializer(Serializer):
    def __init__(self, coder: Coder) -> None:
        self.coder = coder

    def serialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> int:
        """Raises ``CodecError`` for what the recipe cannot code, NaN among it: it is not stored."""
        coded = self.coder.encode(_chunk(src), chunk_key(key))
        buffer = _bytes(dst)
        if len(coded) > buffer.numel():
            raise CodecError(f"chunk: takes {len(coded)} bytes, the buffer has {buffer.numel()}")
        buffer[: len(coded)].copy_(torch.frombuffer(bytearray(coded), dtype=torch.uint8))
        return len(coded)

    def estimate_serialized_size(self, layout_desc: MemoryLayoutDesc) -> int:
        """Raises nothing: LMCache's threads ask. What cannot be coded is refused by ``serialize``."""
        try:
            (shape,), (dtype,) = layout_desc.shapes, layout_desc.dtypes
            return self.coder.capacity(shape, dtype)
        except ValueError:  # CodecError among them.
            return PAGE


class ChunkDeserializer(Deserializer):
    def __init__(self, coder: Coder) -> None:
        self.coder = coder

    def deserialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> None:
        """Raises ``CodecError`` for bytes that are not this key's chunk, whole and of the shape and dtype of ``dst``."""
        data = _bytes(src).numpy().data
        self.coder.decode_into(data, _chunk(dst), chunk_key(key))


def chunk_key(key: ObjectKey) -> ChunkKey:
    return ChunkKey(key.chunk_hash, key.model_name, key.kv_rank, key.object_group_id, key.cache_salt)


def hash_by(algorithm: str, chunk_size: int) -> HashChunks:
    """The hashes of the server's own ``TokenHasher``."""
    hasher = TokenHasher(chunk_size, algorithm)
    return lambda token_ids: hasher.compute_chunk_hashes(list(token_ids))


def create(kwargs: dict[str, Any]) -> SerdeProcessor:
    """The serde for the options in a configuration. Raises ``KvtoolError`` or ``CodecError`` for what makes no sense."""
    options = SerdeOptions.parse(kwargs)
    coder = options.coder(hash_by)
    return AsyncSerdeProcessor(ChunkSerializer(coder), ChunkDeserializer(coder), options.max_workers)


def _chunk(memory: MemoryObj) -> Tensor:
    tensor: Tensor | None = memory.tensor
    if tensor is None or len(memory.get_shapes()) != 1:
        raise CodecError("chunk: is not one tensor in memory")
    return tensor


def _bytes(memory: MemoryObj) -> Tensor:
    tensor: Tensor | None = memory.tensor
    if tensor is None:
        raise CodecError("chunk: has no bytes in memory")
    return tensor.flatten().view(torch.uint8)


if NAME not in get_registered_serde_types():
    register_serde_factory(NAME, create)
