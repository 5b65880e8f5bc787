"""A chunk of LMCache's ↔ bytes, by a recipe of kvtool's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from kvtool.codecs import Blob, Calibration, CodecError, Contents, Geometry, Pipeline, decode, encode
from kvtool.codecs.format import container
from kvtool.codecs.spec import TOKEN_IDS
from kvtool.connectors.lmcache.chunk import FRAME_BYTES, ChunkKey, pack, unpack
from kvtool.connectors.lmcache.layout import ChunkTokens, fill, geometry, to_kv

PAGE = 4096
"""Chunks of one size are a multiple of it, as direct reads and writes want."""

ABOUT_BYTES = 2 * PAGE
"""Room for what a header says of a chunk beyond its pipeline and tensors: its key, and of known tokens the RoPE."""

_log = logging.getLogger(__name__)

Find = Callable[[ChunkKey], ChunkTokens | None]


def nothing_known(_: ChunkKey) -> None:
    """Of no chunk are the tokens known."""


@dataclass(frozen=True)
class Coder:
    """Codes chunks by ``pipeline``, of ``heads`` heads each; those of one plane have keys and values in it if they are ``fused``.

    LMCache hands over no token ids and no positions. A pipeline that needs them gets them from ``find``. Chunks that are
    not found, and those that it cannot take, are coded by ``otherwise``, which needs none. Other pipelines have no ``otherwise``.

    With ``room``, every chunk takes that share of its keys' and values' bytes.
    """

    pipeline: Pipeline
    otherwise: Pipeline | None = None
    heads: int = 1
    fused: bool = False
    room: float | None = None
    find: Find = nothing_known
    calibrations: Mapping[str, Calibration] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for pipeline in filter(None, (self.pipeline, self.otherwise)):
            if pipeline.prune or pipeline.needs:
                lacks = ", ".join(sorted(pipeline.needs)) or "fewer tokens than LMCache gave"
                raise CodecError(f"pipeline: needs {lacks}, which no chunk of LMCache's has")
        if needs_tokens(self.pipeline) != (self.otherwise is not None):
            raise CodecError(
                "pipeline: needs token ids and positions, expected another one for chunks without them"
            )
        if self.otherwise and needs_tokens(self.otherwise):
            raise CodecError(
                "otherwise: needs token ids and positions too, expected a recipe that needs none"
            )

    def capacity(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes that a chunk of this shape takes at most."""
        sizes = geometry(shape, dtype, self.heads, self.fused)
        return _capacity(self.pipeline, self.otherwise, self.room, sizes)

    def encode(self, chunk: Tensor, key: ChunkKey) -> bytes:
        """Raises ``CodecError`` for a chunk that cannot be coded, or takes more than its ``capacity``."""
        capacity = self.capacity(chunk.shape, chunk.dtype)
        coded = self._coded(chunk, key, capacity)
        if len(coded) > capacity:
            raise CodecError(f"chunk: takes {len(coded)} bytes, and has room for {capacity}")
        return coded.ljust(capacity, b"\0") if self._is_of_one_size(chunk) else coded

    def decode_into(self, data: bytes | memoryview, chunk: Tensor, key: ChunkKey) -> None:
        """Decodes what ``encode`` gave for ``key`` into a tensor of the same shape and dtype.

        Raises ``CodecError`` for anything else, and then leaves ``chunk`` as it is.
        """
        tensors, metadata = unpack(data, key)
        try:
            heads, known = metadata["heads"], metadata["tokens_known"]
            contents = Contents.from_metadata(metadata, self.calibrations)
            if contents.geometry != geometry(chunk.shape, chunk.dtype, int(heads), bool(metadata["fused"])):
                held = contents.geometry.to_json()
                raise CodecError(f"chunk: holds {held}, expected {list(chunk.shape)} {chunk.dtype}")
            if not known:
                tensors = {TOKEN_IDS: torch.zeros(contents.geometry.n_tokens, dtype=torch.int32), **tensors}
            kv = decode(Blob(tensors, metadata, contents.pipeline.calibrations))
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise CodecError(
                f"chunk: its metadata is not kvtool's ({type(error).__name__}: {error})"
            ) from error
        fill(chunk, kv)

    def _coded(self, chunk: Tensor, key: ChunkKey, capacity: int) -> bytes:
        if self.otherwise is None:
            return self._by(self.pipeline, chunk, key, None)
        if (tokens := self.find(key)) is not None:
            try:
                coded = self._by(self.pipeline, chunk, key, tokens)
                if len(coded) <= capacity:
                    return coded
            except CodecError as error:
                _warn_once(f"chunks of {key.model_name} are coded as unknown ones: {error}")
        return self._by(self.otherwise, chunk, key, None)

    def _by(self, pipeline: Pipeline, chunk: Tensor, key: ChunkKey, tokens: ChunkTokens | None) -> bytes:
        blob = encode(to_kv(chunk, self.heads, tokens, self.fused), pipeline)
        tensors = {name: t for name, t in blob.tensors.items() if tokens or name != TOKEN_IDS}
        about = {
            **blob.metadata,
            "heads": self.heads,
            "fused": self.fused,
            "tokens_known": tokens is not None,
        }
        return pack(tensors, about, key)

    def _is_of_one_size(self, chunk: Tensor) -> bool:
        sizes = geometry(chunk.shape, chunk.dtype, self.heads, self.fused)
        return self.room is not None or (self.otherwise is None and has_one_size(self.pipeline, sizes))


def needs_tokens(pipeline: Pipeline) -> bool:
    """Whether it codes by token ids or positions."""
    return any(stage.needs for stage in pipeline.stages)


def has_one_size(pipeline: Pipeline, sizes: Geometry) -> bool:
    """Whether all chunks of a geometry take the same bytes."""
    contents = Contents(pipeline, sizes, 0, {})
    return not any(array.at_most for group in contents.groups for array in contents.arrays(group).values())


@lru_cache(maxsize=64)
def _capacity(pipeline: Pipeline, otherwise: Pipeline | None, room: float | None, sizes: Geometry) -> int:
    raw = sizes.n_elements * sizes.dtype.itemsize
    if room is not None:
        return _whole_pages(int(room * raw) + ABOUT_BYTES)
    # What is coded by known tokens gets the room of what is not coded at all.
    planned = [_planned(Contents(otherwise or pipeline, sizes, 0, {}))] + ([raw] if otherwise else [])
    return _whole_pages(max(planned) + ABOUT_BYTES)


def _planned(contents: Contents) -> int:
    """Bytes of a chunk's frame, header and tensors at most, the key not counted."""
    arrays = {name: array for group in contents.groups for name, array in contents.arrays(group).items()}
    placed = container.layout({name: (array.dtype, array.shape) for name, array in arrays.items()})
    about = container.canonical_json(contents.to_metadata()).decode()
    return (
        FRAME_BYTES
        + len(container.header(placed, {"kvtool": about}))
        + sum(map(container.nbytes, placed.values()))
    )


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


@lru_cache(maxsize=1024)
def _warn_once(line: str) -> None:
    _log.warning("%s", line)
