"""The bytes of one chunk as LMCache stores it: a frame around a safetensors file.

``KVTCHNK1``, the payload's length (8 bytes, little-endian), its BLAKE3 digest (32 bytes), the payload, and zeros up to the
size that was asked for. The payload's ``__metadata__`` has one canonical JSON value under ``kvtool``: the chunk's key in
LMCache, its heads, whether keys and values are fused and its token ids known, and what ``Contents.to_metadata`` says:
pipeline, geometry, positions and RoPE. So a chunk decodes without its server's configuration, and one under another's key is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import blake3
from torch import Tensor

from kvtool.codecs import CodecError
from kvtool.codecs.format import container
from kvtool.formats import FORMATS

MAGIC = b"KVTCHNK1"
FRAME_BYTES = len(MAGIC) + 8 + 32
FORMAT = FORMATS["chunk"].number


@dataclass(frozen=True)
class ChunkKey:
    """What LMCache finds a chunk by. ``chunk_hash`` covers all token ids up to the chunk's end."""

    chunk_hash: bytes
    model_name: str
    kv_rank: int = 0
    object_group_id: int = 0
    cache_salt: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "chunk_hash": self.chunk_hash.hex()}


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], key: ChunkKey) -> bytes:
    """The chunk's bytes, without padding."""
    about = {**metadata, "format": FORMAT, "key": key.to_json()}
    payload = container.to_bytes(tensors, {"kvtool": container.canonical_json(about).decode()})
    return b"".join([MAGIC, len(payload).to_bytes(8, "little"), blake3.blake3(payload).digest(), payload])


def unpack(data: bytes | memoryview, key: ChunkKey) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of what ``pack`` gave for ``key``, whatever stands after it.

    Raises ``CodecError`` for bytes that have changed, that are no chunk, or that are another key's.
    """
    payload = _payload(memoryview(data).cast("B"))
    tensors, texts = container.from_bytes(payload)
    try:
        metadata = dict(json.loads(texts["kvtool"]))
        version, stored_key = metadata.pop("format"), metadata.pop("key")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CodecError(f"chunk: its metadata is not kvtool's ({type(error).__name__})") from error
    if version != FORMAT:
        raise CodecError(
            f"chunk: is of format {str(version)[:80]}, this kvtool reads {FORMAT}; upgrade kvtool"
        )
    if stored_key != key.to_json():
        raise CodecError(f"chunk: is stored under the key {key.to_json()}, but is that of {stored_key}")
    return tensors, metadata


def _payload(data: memoryview) -> bytes:
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise CodecError(
            f"chunk: begins with {bytes(data[: len(MAGIC)])!r}, expected {MAGIC!r}: kvtool did not write it"
        )
    length = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 8], "little")
    if FRAME_BYTES + length > len(data):
        raise CodecError(f"chunk: is cut off at {len(data)} bytes, its frame says {FRAME_BYTES + length}")
    payload = bytes(data[FRAME_BYTES : FRAME_BYTES + length])
    if blake3.blake3(payload).digest() != bytes(data[FRAME_BYTES - 32 : FRAME_BYTES]):
        raise CodecError("chunk: has changed since it was written (digest differs)")
    return payload
