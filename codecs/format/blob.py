"""One segment, encoded: named tensors, and the metadata that says how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.format import container
from kvtool.codecs.format.pruned import Segment, pruned
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.pipeline import Inputs, Pipeline
from kvtool.codecs.recipe import Recipe, Value
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.codecs.spec import TOKEN_IDS, Json


@dataclass(frozen=True)
class Blob:
    """``tensors``: ``token_ids`` (int32), then ``layers.0000.keys``, ``layers.0000.keys.codes``, … in order.

    ``metadata`` is ``Contents.to_metadata``: JSON values under pipeline, geometry, positions and rope.
    ``calibrations`` are those that the pipeline names: shared with other segments, and needed to decode.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Json]
    calibrations: tuple[Calibration, ...] = ()

    @cached_property
    def nbytes(self) -> int:
        """All that would be stored for this segment: the exact size of the container, header and padding included."""
        placed = container.layout(container.entries(self.tensors))
        head = container.header(placed, {"kvtool": container.canonical_json(self.metadata).decode()})
        return len(head) + sum(map(container.nbytes, placed.values()))

    @property
    def calibration_nbytes(self) -> int:
        """Bytes of its calibrations, which all segments encoded with the same ones share."""
        return sum(calibration.nbytes for calibration in self.calibrations)


def encode(
    kv: KV,
    recipe: str | Recipe | Pipeline,
    *,
    inputs: Inputs | None = None,
    calibration: Calibration | None = None,
    **parameters: Value,
) -> Blob:
    """Encode a segment by a recipe's name, a recipe or a pipeline; ``parameters`` are the recipe's.

    ``inputs`` is what the recipe needs beyond keys and values, a tensor for each layer. Raises CodecError for
    an unknown recipe or parameter and for a layer that cannot be encoded, NeedsError for a missing input,
    NeedsCalibration for a missing calibration.
    """
    asked = Contents.of(kv, _pipeline(recipe, calibration, parameters))
    segment = pruned(Segment(asked, kv.layers.__getitem__, inputs or {})).suited(kv.token_ids)
    contents = segment.contents
    tensors = {TOKEN_IDS: kv.token_ids.to(torch.int32)}
    for group in contents.groups:
        tensors |= segment.encode(group, kv.token_ids)
    return Blob(tensors, contents.to_metadata(), contents.pipeline.calibrations)


def decode(blob: Blob, device: torch.device | None = None) -> KV:
    """The segment that ``encode`` was given, without what was pruned, within the recipe's error.

    Keys and values are given on ``device``, by default the CPU. What a recipe's stages can compute there, they do.

    Raises CodecError, naming the layer and the tensor, for a blob that is not what its metadata says, and
    MissingCalibration for one without a calibration that its pipeline names.
    """
    contents = Contents.from_metadata(blob.metadata, {found.digest: found for found in blob.calibrations})
    token_ids = contents.check(blob.tensors)
    layers: list[LayerKV] = []
    for group in contents.groups:
        own = {name: blob.tensors[name] for name in contents.arrays(group)}
        layers += contents.decode(group, own, token_ids=token_ids, device=device)
    return KV(tuple(layers), token_ids.to(torch.int64), contents.rope, contents.start)


def _pipeline(
    recipe: str | Recipe | Pipeline, calibration: Calibration | None, parameters: Mapping[str, Value]
) -> Pipeline:
    if isinstance(recipe, str):
        recipe = find_recipe(recipe)
    if isinstance(recipe, Recipe):
        return recipe.build(calibration, **parameters)
    given = [*parameters, *(["calibration"] if calibration else [])]
    if given:
        raise TypeError(f"a pipeline takes no parameters, but {', '.join(given)} came with it")
    return recipe
