"""What an encoded segment holds: everything needed to plan and read its tensors, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.geometry import Geometry
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.stage import Array, Json

TOKEN_IDS = "token_ids"
INT32_END = 1 << 31


@dataclass(frozen=True)
class Contents:
    """Pipeline, geometry, positions and RoPE parameters of a segment.

    ``start``: every layer holds all tokens, at positions ``start``, ``start + 1``, …; None if a layer does
    not, and each layer then has a tensor ``layers.0000.positions`` (int32).
    """

    pipeline: Pipeline
    geometry: Geometry
    start: int | None
    rope: Mapping[str, Any]

    @classmethod
    def of(cls, kv: KV, pipeline: Pipeline) -> Contents:
        """Raises CodecError, naming what does not fit, for a KV that is inconsistent or cannot be stored."""
        if kv.token_ids.ndim != 1:
            raise CodecError(f"{TOKEN_IDS}: shape is {list(kv.token_ids.shape)}, expected [tokens]")
        geometry = Geometry.of(kv)
        for name, ids in [(TOKEN_IDS, kv.token_ids)] + [
            (f"layer {i}: positions", layer.positions) for i, layer in enumerate(kv.layers)
        ]:
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < INT32_END:
                raise CodecError(
                    f"{name}: run from {int(ids.min())} to {int(ids.max())}, expected int32 from 0"
                )
        return cls(pipeline, geometry, _shared_start(kv), kv.rope)

    def to_metadata(self) -> dict[str, Json]:
        return {
            "pipeline": self.pipeline.to_config(),
            "geometry": self.geometry.to_json(),
            "positions": None if self.start is None else {"start": self.start},
            "rope": dict(self.rope),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Json]) -> Contents:
        """Undo ``to_metadata``; other keys are left alone. Raises CodecError, naming the field."""
        positions, rope = metadata.get("positions"), metadata.get("rope")
        geometry = Geometry.from_json(metadata.get("geometry"))
        start: int | None = None
        if positions is not None:
            given = positions.get("start") if isinstance(positions, Mapping) else None
            start = given if isinstance(given, int) and not isinstance(given, bool) else -1
            if not 0 <= start <= INT32_END - geometry.n_tokens:
                raise CodecError(f"metadata: positions is {str(positions)[:80]}, expected a start in int32")
            if any(layer.tokens != geometry.n_tokens for layer in geometry.layers):
                raise CodecError("metadata: positions has one start, but layers differ in tokens")
        if not isinstance(rope, Mapping):
            raise CodecError(f"metadata: rope is {str(rope)[:80]}, expected an object")
        return cls(Pipeline.from_config(metadata.get("pipeline")), geometry, start, rope)

    def arrays(self, index: int) -> dict[str, Array]:
        """The stored tensors of a layer by their full names, in the order in which they are stored."""
        layer = self.geometry.layers[index]
        plan = self.pipeline.plan(*self.geometry.arrays(index)).arrays
        if self.start is None:
            plan = {"positions": Array((layer.tokens,), torch.int32)} | plan
        return {_full(index, name): array for name, array in plan.items()}

    def check(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Refuse missing and unexpected names, and token ids that do not fit; gives the token ids.

        Their number bounds every other size along the tokens. The layers' tensors are checked as each is
        decoded.
        """
        expected = {TOKEN_IDS: Array((self.geometry.n_tokens,), torch.int32)}
        if TOKEN_IDS not in tensors:
            raise CodecError(f"tensor {TOKEN_IDS} is missing")
        expected[TOKEN_IDS].check(TOKEN_IDS, tensors[TOKEN_IDS])
        for index in range(len(self.geometry.layers)):
            expected |= self.arrays(index)
        if odd := expected.keys() ^ tensors.keys():
            name = min(odd)
            raise CodecError(f"tensor {name} is {'missing' if name in expected else 'not expected'}")
        return tensors[TOKEN_IDS]

    def encode_layer(self, index: int, layer: LayerKV) -> dict[str, Tensor]:
        """A layer's stored tensors by their full names, named and ordered as ``arrays``."""
        stored = self.pipeline.encode_layer(layer, index)
        if self.start is None:
            stored = {"positions": layer.positions.to(torch.int32)} | stored
        return {_full(index, name): tensor for name, tensor in stored.items()}

    def decode_layer(self, index: int, tensors: Mapping[str, Tensor]) -> LayerKV:
        """Undo ``encode_layer``. Raises CodecError, naming the layer and the tensor."""
        prefix = _full(index, "")
        short = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        tokens = self.geometry.layers[index].tokens
        if self.start is not None:
            positions = torch.arange(self.start, self.start + tokens)
        else:
            if "positions" not in short:
                raise CodecError(f"tensor {prefix}positions is missing")
            stored = short.pop("positions")
            Array((tokens,), torch.int32).check(f"{prefix}positions", stored)
            if tokens and int(stored.min()) < 0:
                raise CodecError(f"{prefix}positions: holds {int(stored.min())}, expected none below 0")
            positions = stored.to(torch.int64)
        return self.pipeline.decode_layer(short, *self.geometry.arrays(index), positions, index)


def _full(index: int, name: str) -> str:
    return f"layers.{index:04d}.{name}"


def _shared_start(kv: KV) -> int | None:
    first = int(kv.layers[0].positions[0]) if kv.n_tokens and kv.layers[0].positions.numel() else 0
    run = torch.arange(first, first + kv.n_tokens)
    shared = all(torch.equal(layer.positions.cpu().to(torch.int64), run) for layer in kv.layers)
    return first if shared else None
