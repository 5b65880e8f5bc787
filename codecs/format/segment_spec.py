"""The specification of an encoded segment: all that is needed to plan and read its tensors, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from kvtool.codecs.calibration import NONE, Calibration
from kvtool.codecs.errors import CodecError
from kvtool.codecs.geometry import Geometry
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.pipeline import Inputs, Pipeline
from kvtool.codecs.rope import Rope, ropes
from kvtool.codecs.spec import POSITIONS, TOKEN_IDS, Array, Json, Place

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
    def from_metadata(
        cls, metadata: Mapping[str, Json], calibrations: Mapping[str, Calibration] = NONE
    ) -> Contents:
        """Undo ``to_metadata``; other keys are left alone. ``calibrations`` are found by their digests.

        Raises CodecError, naming the field; MissingCalibration for a digest that is not there.
        """
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
        pipeline = Pipeline.from_config(metadata.get("pipeline"), calibrations)
        return cls(pipeline, geometry, start, rope)

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The layers that are coded together: ``pipeline.layers`` neighbours of equal sizes, fewer at the end.

        All neighbours of equal sizes where that is 0.
        """
        found: list[range] = []
        for _, run in groupby(range(len(self.geometry.layers)), key=lambda i: self.geometry.layers[i]):
            layers = list(run)
            step, end = self.pipeline.layers or len(layers), layers[-1] + 1
            found += [range(start, min(start + step, end)) for start in range(layers[0], end, step)]
        return tuple(found)

    def arrays(self, group: range) -> dict[str, Array]:
        """The stored tensors of a group of layers by their full names, in the order in which they are stored."""
        plan = self.pipeline.plan(*self.geometry.arrays(group[0]), self.place(group)).arrays
        return self._positions(group) | {self._full(group, name): array for name, array in plan.items()}

    def check(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Refuse missing and unexpected names, and token ids that do not fit; gives the token ids.

        Their number bounds every other size along the tokens. The layers' tensors are checked as each is
        decoded.
        """
        expected = {TOKEN_IDS: Array((self.geometry.n_tokens,), torch.int32)}
        if TOKEN_IDS not in tensors:
            raise CodecError(f"tensor {TOKEN_IDS} is missing")
        expected[TOKEN_IDS].check(TOKEN_IDS, tensors[TOKEN_IDS])
        for group in self.groups:
            expected |= self.arrays(group)
        if odd := expected.keys() ^ tensors.keys():
            name = min(odd)
            raise CodecError(f"tensor {name} is {'missing' if name in expected else 'not expected'}")
        return tensors[TOKEN_IDS]

    def suited(
        self, layer: Callable[[int], LayerKV], inputs: Inputs | None = None, token_ids: Tensor | None = None
    ) -> Contents:
        """The same by a pipeline that suits the segment (``Pipeline.suited``); ``layer`` gives each of its layers."""
        pipeline = self.pipeline
        for group in self.groups if pipeline.chooses else ():
            own = self._inputs(group, inputs, token_ids)
            pipeline = pipeline.suited([layer(index) for index in group], self.place(group), own)
        return replace(self, pipeline=pipeline)

    def encode(
        self,
        group: range,
        layers: Sequence[LayerKV],
        inputs: Inputs | None = None,
        token_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """A group's stored tensors by their full names, named and ordered as ``arrays``.

        ``inputs`` has a tensor for each layer of the segment.
        """
        stored = self.pipeline.encode(layers, self.place(group), self._inputs(group, inputs, token_ids))
        positions = {
            name: layer.positions.to(torch.int32)
            for name, layer in zip(self._positions(group), layers, strict=False)
        }
        return positions | {self._full(group, name): tensor for name, tensor in stored.items()}

    def decode(
        self,
        group: range,
        tensors: Mapping[str, Tensor],
        tokens: range | None = None,
        token_ids: Tensor | None = None,
    ) -> list[LayerKV]:
        """Undo ``encode``, for ``tokens`` (a range without steps) or all.

        Raises CodecError, naming the layer and the tensor.
        """
        held = self.geometry.layers[group[0]].tokens
        if tokens is not None and not (0 <= tokens.start <= tokens.stop <= held and tokens.step == 1):
            raise CodecError(f"tokens is {tokens}, expected a range within the layer's {held}")
        if self.start is not None:
            run = torch.arange(self.start, self.start + self.geometry.layers[group[0]].tokens)
            positions = [run] * len(group)
        else:
            positions = [_read_positions(name, tensors, a) for name, a in self._positions(group).items()]
        prefix = self._full(group, "")
        short = {n.removeprefix(prefix): t for n, t in tensors.items() if n not in self._positions(group)}
        sizes = self.geometry.arrays(group[0])
        ids = self._ids_of(group, token_ids)
        return self.pipeline.decode(short, *sizes, positions, self.place(group), tokens, ids)

    def _inputs(self, group: range, inputs: Inputs | None, token_ids: Tensor | None) -> Inputs:
        own = {name: [tensors[index] for index in group] for name, tensors in (inputs or {}).items()}
        if (ids := self._ids_of(group, token_ids)) is not None:
            own[TOKEN_IDS] = [ids] * len(group)
        return own

    def _ids_of(self, group: range, token_ids: Tensor | None) -> Tensor | None:
        """Token ids [T] int64 of a group's layers; None where it is not known which tokens they hold."""
        if token_ids is None or self.geometry.layers[group[0]].tokens != len(token_ids):
            return None
        return token_ids.to(torch.int64)

    @cached_property
    def _ropes(self) -> tuple[Rope, ...]:
        return ropes(self.rope, len(self.geometry.layers))

    def place(self, group: range) -> Place:
        """The place of a group's layers in the model, and the rotations of their keys."""
        own = self._ropes[group.start : group.stop]
        return Place(group.start, len(group), len(self.geometry.layers), own, self.start)

    def _positions(self, group: range) -> dict[str, Array]:
        if self.start is not None:
            return {}
        return {
            f"layers.{index:04d}.{POSITIONS}": Array((self.geometry.layers[index].tokens,), torch.int32)
            for index in group
        }

    def _full(self, group: range, name: str) -> str:
        last = f"-{group[-1]:04d}" if self.pipeline.grouped else ""
        return f"layers.{group[0]:04d}{last}.{name}"


def _read_positions(name: str, tensors: Mapping[str, Tensor], array: Array) -> Tensor:
    if name not in tensors:
        raise CodecError(f"tensor {name} is missing")
    array.check(name, tensors[name])
    if array.numel and int(tensors[name].min()) < 0:
        raise CodecError(f"{name}: holds {int(tensors[name].min())}, expected none below 0")
    return tensors[name].to(torch.int64)


def _shared_start(kv: KV) -> int | None:
    first = int(kv.layers[0].positions[0]) if kv.n_tokens and kv.layers[0].positions.numel() else 0
    run = torch.arange(first, first + kv.n_tokens)
    shared = all(torch.equal(layer.positions.cpu().to(torch.int64), run) for layer in kv.layers)
    return first if shared else None
