"""Artifacts that hold no tokens, but what stages need of a segment beside keys and values.

Such an artifact is one whose layers hold none of the segment's tokens, and that has a float32 tensor
``inputs.NAME.0000`` for each input and layer. What is done with files of a store is done with it too; it is never a cache.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from kvtool.artifact.identity import RAW, calibration_digests, made_identity
from kvtool.artifact.read import Artifact, input_name
from kvtool.artifact.write import Content
from kvtool.codecs import Contents, Inputs, LayerKV
from kvtool.codecs.spec import TOKEN_IDS


def collected_content(original: Artifact, inputs: Inputs) -> Content:
    """``inputs`` of the segment that ``original``, a raw artifact, holds: a float tensor for each layer, by name."""
    of = original.contents
    layers = tuple(replace(layer, tokens=0) for layer in of.geometry.layers)
    contents = Contents(RAW, replace(of.geometry, layers=layers), of.start, of.rope)
    tensors = {TOKEN_IDS: original.token_ids.to(torch.int32)}
    for name in sorted(inputs):
        tensors |= {input_name(name, index): x.float().cpu() for index, x in enumerate(inputs[name])}
    none = torch.zeros(0, dtype=torch.int64)
    for group in contents.groups:
        sides = [[torch.zeros(x.shape, dtype=x.dtype) for x in contents.geometry.arrays(n)] for n in group]
        empty = [LayerKV(keys, values, none) for keys, values in sides]
        tensors |= contents.encode(group, empty)
    made = {"inputs": sorted(inputs)}
    meta = {
        **{key: value for key, value in original.meta.items() if key not in ("digest", "tensors", "format")},
        **contents.to_metadata(),
        "identity": made_identity(original.meta, made),
        "calibrations": calibration_digests(RAW),
        "source": {**original.meta["source"], "raw": original.digest},
        "made": made,
    }
    return Content(tensors, meta)


def read_inputs(artifact: Artifact, names: Collection[str]) -> Inputs:
    """Those of ``names`` that ``artifact`` holds, checked as they are read."""
    layers = range(artifact.n_layers)
    return {
        name: [artifact.read(input_name(name, index)) for index in layers]
        for name in artifact.inputs
        if name in names
    }
