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
from kvtool.codecs.errors import CodecError, unexpected
from kvtool.codecs.geometry import Geometry
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.pipeline import Inputs, Pipeline
from kvtool.codecs.prune.stage import take
from kvtool.codecs.rope import Rope, ropes
from kvtool.codecs.spec import POSITIONS, TOKEN_IDS, Array, Json, Place
from kvtool.kernels.dispatch import pack, packed_size, unpack

KEPT, BIAS = "kept", "bias"

INT32_END = 1 << 31


@dataclass(frozen=True)
class Contents:
    """Pipeline, geometry, positions and RoPE parameters of a segment.

    ``start``: the tokens are at positions ``start``, ``start + 1``, …; a layer that does not hold all of them in all heads has a
    tensor ``layers.0000.kept``, a bit for each token, by head where heads differ. None if positions are others, and each
    layer then has a tensor ``layers.0000.positions`` (int32). A layer with biases has a tensor ``layers.0000.bias``.
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
        if not isinstance(rope, Mapping):
            raise CodecError(f"metadata: rope is {str(rope)[:80]}, expected an object")
        pipeline = Pipeline.from_config(metadata.get("pipeline"), calibrations)
        return cls(pipeline, geometry, start, rope)

    @cached_property
    def whole(self) -> Contents | None:
        """What is coded where a pipeline prunes layers or heads apart and codes layers together; None where that is what stays.

        Layers and heads that hold different tokens have no rows in common, so all are coded, and some left out once decoded.
        """
        prune = self.pipeline.prune
        if (
            prune is None
            or prune.keeps_same_tokens
            or not (self.pipeline.grouped and self.geometry.is_pruned)
        ):
            return None
        layers = tuple(layer.whole(self.geometry.n_tokens) for layer in self.geometry.layers)
        return replace(
            self,
            pipeline=replace(self.pipeline, prune=None),
            geometry=replace(self.geometry, layers=layers),
        )

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The layers that are coded together: ``pipeline.layers`` neighbours of equal sizes, fewer at the end.

        All neighbours of equal sizes where that is 0.
        """
        if self.whole:
            return self.whole.groups
        found: list[range] = []
        for _, run in groupby(range(len(self.geometry.layers)), key=lambda i: self.geometry.layers[i]):
            layers = list(run)
            step, end = self.pipeline.layers or len(layers), layers[-1] + 1
            found += [range(start, min(start + step, end)) for start in range(layers[0], end, step)]
        return tuple(found)

    def arrays(self, group: range) -> dict[str, Array]:
        """The stored tensors of a group of layers by their full names, in the order in which they are stored."""
        if self.whole:
            return self._tokens(group) | self.whole.arrays(group)
        plan = self.pipeline.plan(*self.geometry.arrays(group[0]), self.place(group)).arrays
        return self._tokens(group) | {self._full(group, name): array for name, array in plan.items()}

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
        """The same by a pipeline that suits the segment (``Pipeline.suited``); ``layer`` gives each of the coded layers."""
        if self.whole:
            suited = self.whole.suited(layer, inputs, token_ids).pipeline
            return replace(self, pipeline=replace(suited, prune=self.pipeline.prune))
        pipeline = self.pipeline
        for group in self.groups if pipeline.chooses else ():
            layers = [layer(index) for index in group]
            by_layer = self._inputs(group, layers[0].positions, inputs, token_ids)
            pipeline = pipeline.suited(layers, self.place(group), by_layer)
        return replace(self, pipeline=pipeline)

    def encode(
        self,
        group: range,
        layers: Sequence[LayerKV],
        inputs: Inputs | None = None,
        token_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """A group's stored tensors by their full names, named and ordered as ``arrays``.

        ``inputs`` has a tensor for each layer of the segment. Where there is a ``whole``, that is what encodes.
        """
        _refuse_mixed(group, layers)
        by_layer = self._inputs(group, layers[0].positions, inputs, token_ids)
        stored = self.pipeline.encode(layers, self.place(group), by_layer)
        return self.stored_tokens(group, layers) | {self._full(group, n): t for n, t in stored.items()}

    def decode(
        self,
        group: range,
        tensors: Mapping[str, Tensor],
        tokens: range | None = None,
        token_ids: Tensor | None = None,
        device: torch.device | None = None,
    ) -> list[LayerKV]:
        """Undo ``encode``, for ``tokens`` (a range without steps) or all; keys and values on ``device``, by default the CPU.

        Raises CodecError, naming the layer and the tensor.
        """
        if self.whole:
            return self._decode_whole(self.whole, group, tensors, tokens, token_ids, device)
        held = self.geometry.layers[group[0]].tokens
        if tokens is not None and not (0 <= tokens.start <= tokens.stop <= held and tokens.step == 1):
            raise CodecError(f"tokens is {tokens}, expected a range within the layer's {held}")
        read = [self._read_tokens(index, tensors) for index in group]
        _refuse_mixed(group, read)
        prefix = self._full(group, "")
        short = {n.removeprefix(prefix): t for n, t in tensors.items() if n not in self._tokens(group)}
        sizes = self.geometry.arrays(group[0])
        positions = [layer.positions for layer in read]
        ids = self._ids_of(positions[0], token_ids)
        layers = self.pipeline.decode(short, *sizes, positions, self.place(group), tokens, ids, device)
        if all(layer.lengths is None and layer.bias is None for layer in read):
            return layers
        # A range of packed tokens belongs to no heads.
        lengths = [layer.lengths if tokens is None else None for layer in read]
        biases = [layer.of(tokens).bias if tokens is not None else layer.bias for layer in read]
        return [
            replace(layer, lengths=own, bias=bias)
            for layer, own, bias in zip(layers, lengths, biases, strict=True)
        ]

    def _decode_whole(
        self,
        whole: Contents,
        group: range,
        tensors: Mapping[str, Tensor],
        tokens: range | None,
        token_ids: Tensor | None,
        device: torch.device | None,
    ) -> list[LayerKV]:
        if tokens is not None:
            raise CodecError(f"tokens is {tokens}, expected none where heads hold different tokens")
        own = self._tokens(group)
        coded = {name: tensor for name, tensor in tensors.items() if name not in own}
        layers: list[LayerKV] = []
        for index, layer in zip(group, whole.decode(group, coded, None, token_ids, device), strict=True):
            read = self._read_tokens(index, tensors)
            kept = self._kept(read) if self._is_pruned(index) else torch.ones(1, len(layer.positions))
            layers.append(replace(take(layer, kept.bool()), bias=read.bias))
        return layers

    def _inputs(
        self, group: range, positions: Tensor, inputs: Inputs | None, token_ids: Tensor | None
    ) -> Inputs:
        by_layer = {name: [tensors[index] for index in group] for name, tensors in (inputs or {}).items()}
        if (ids := self._ids_of(positions, token_ids)) is not None:
            by_layer[TOKEN_IDS] = [ids] * len(group)
        return by_layer

    def _ids_of(self, positions: Tensor, token_ids: Tensor | None) -> Tensor | None:
        """The token ids at ``positions``, int64; None where it is not known which tokens these are."""
        if token_ids is None or (self.start is None and len(positions) != len(token_ids)):
            return None
        ids = token_ids.to(torch.int64)
        return ids if self.start is None else ids[positions.to(torch.int64) - self.start]

    @cached_property
    def _ropes(self) -> tuple[Rope, ...]:
        return ropes(self.rope, len(self.geometry.layers))

    def place(self, group: range) -> Place:
        """The place of a group's layers in the model, and the rotations of their keys."""
        ropes_of_group = self._ropes[group.start : group.stop]
        pruned = any(self._is_pruned(index) for index in group)
        packed = any(self.geometry.layers[index].lengths is not None for index in group)
        return Place(
            group.start, len(group), len(self.geometry.layers), ropes_of_group, self.start, pruned, packed
        )

    def _is_pruned(self, index: int) -> bool:
        layer = self.geometry.layers[index]
        return layer.lengths is not None or layer.tokens != self.geometry.n_tokens

    def _tokens(self, group: range) -> dict[str, Array]:
        """Tensors that say which tokens the layers of a group hold, and what is added to their scores."""
        arrays: dict[str, Array] = {}
        for index in group:
            layer, name = self.geometry.layers[index], f"layers.{index:04d}."
            if self.start is None:
                arrays[name + POSITIONS] = Array((layer.tokens,), torch.int32)
            elif self._is_pruned(index):
                heads = 1 if layer.lengths is None else len(layer.lengths)
                arrays[name + KEPT] = Array((heads, packed_size(self.geometry.n_tokens, 1)), torch.uint8)
            if layer.biased:
                arrays[name + BIAS] = Array((layer.keys[0], layer.tokens), torch.float16)
        return arrays

    def stored_tokens(self, group: range, layers: Sequence[LayerKV]) -> dict[str, Tensor]:
        """Those tensors of ``layers``, by their names."""
        stored: dict[str, Tensor] = {}
        for index, layer in zip(group, layers, strict=True):
            name = f"layers.{index:04d}."
            if self.start is None:
                stored[name + POSITIONS] = layer.positions.to(torch.int32)
            elif self._is_pruned(index):
                stored[name + KEPT] = torch.stack([pack(row, 1) for row in self._kept(layer)])
            if layer.bias is not None:
                stored[name + BIAS] = layer.bias.half()
        return stored

    def _kept(self, layer: LayerKV) -> Tensor:
        """Ones for the tokens that a layer holds, [H, T] uint8, or [1, T] where its heads hold the same."""
        positions = layer.positions.cpu()
        rows = [positions] if layer.lengths is None else torch.split(positions, list(layer.lengths))
        kept = torch.zeros(len(rows), self.geometry.n_tokens, dtype=torch.uint8)
        for row, held in zip(kept, rows, strict=True):
            row[held - (self.start or 0)] = 1
        return kept

    def _read_tokens(self, index: int, tensors: Mapping[str, Tensor]) -> LayerKV:
        """A layer's positions, lengths and biases, without keys and values."""
        arrays = self._tokens(range(index, index + 1))
        for name, array in arrays.items():
            if name not in tensors:
                raise CodecError(f"tensor {name} is missing")
            array.check(name, tensors[name])
        layer, name, empty = self.geometry.layers[index], f"layers.{index:04d}.", torch.empty(0)
        bias = tensors[name + BIAS].float() if layer.biased else None
        if bias is not None and not bias.isfinite().all():
            raise CodecError(f"{name}{BIAS}: holds NaN or infinity")
        if self.start is None:
            positions = tensors[name + POSITIONS].to(torch.int64)
            if positions.numel() and int(positions.min()) < 0:
                raise CodecError(f"{name}{POSITIONS}: holds {int(positions.min())}, expected none below 0")
            return LayerKV(empty, empty, positions, layer.lengths, bias)
        if not self._is_pruned(index):
            return LayerKV(empty, empty, torch.arange(self.start, self.start + layer.tokens), bias=bias)
        bits = torch.stack([unpack(row, self.geometry.n_tokens, 1) for row in tensors[name + KEPT]])
        lengths, expected = tuple(bits.sum(1).tolist()), layer.lengths or (layer.tokens,)
        if lengths != expected:
            raise unexpected(f"{name}{KEPT}: numbers of tokens", lengths, str(expected)[:80])
        return LayerKV(empty, empty, bits.nonzero()[:, 1] + self.start, layer.lengths, bias)

    def _full(self, group: range, name: str) -> str:
        last = f"-{group[-1]:04d}" if self.pipeline.grouped else ""
        return f"layers.{group[0]:04d}{last}.{name}"


def _refuse_mixed(group: range, layers: Sequence[LayerKV]) -> None:
    first, *others = layers
    for index, layer in zip(group[1:], others, strict=True):
        if not torch.equal(layer.positions, first.positions):
            raise CodecError(f"layers {group[0]} and {index} are coded together, but hold different tokens")


def _shared_start(kv: KV) -> int | None:
    """The position of the first token, where all tokens are in a row."""
    first = int(kv.layers[0].positions[0]) if kv.n_tokens and kv.layers[0].positions.numel() else 0
    run = torch.arange(first, first + kv.n_tokens)
    if all(torch.equal(layer.positions.cpu().to(torch.int64), run) for layer in kv.layers):
        return first
    if kv.start is None:
        return None
    for index, layer in enumerate(kv.layers):
        for head in layer.heads():
            offsets = head.positions - kv.start
            if (offsets.diff() <= 0).any() or not ((offsets >= 0) & (offsets < kv.n_tokens)).all():
                raise CodecError(
                    f"layer {index}: positions are not ascending and from {kv.start} to {kv.start + kv.n_tokens - 1}"
                )
    return kv.start
