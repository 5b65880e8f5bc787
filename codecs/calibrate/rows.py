"""A sample's cache as rows: a token's keys, before RoPE, or its values, of a group of layers side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.codecs.calibration import Sample
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.spec import Array, Place, Spec
from kvtool.codecs.transform.unrope import Unrope


def cache_rows(sample: Sample, contents: Contents, group: range, side: str, tokens: slice) -> Tensor:
    """[tokens, L · H · D] float32."""
    return _rows([sample.kv.layers[index] for index in group], contents.place(group), side, tokens)


def gradient_rows(sample: Sample, contents: Contents, group: range, side: str, tokens: slice) -> Tensor:
    """The loss's gradients in the same shape, [tokens, L · H · D] float32. Raises ValueError for a sample without any."""
    if sample.gradients is None:
        raise ValueError("the sample has no gradients")
    place = contents.place(group)
    layers = [sample.gradients[index] for index in group]
    rows = _rows(layers, place, side, tokens)
    if side == "keys":
        # A rotation turns a gradient back as it does a key; what scales a key scales its gradient the other way.
        scaling = torch.tensor([rope.scaling**2 for rope in place.ropes])
        by_layer = rows.view(len(rows), len(group), rows.shape[1] // len(group))
        rows = (by_layer * scaling[:, None]).flatten(1)
    return rows


def _rows(layers: list[LayerKV], place: Place, side: str, tokens: slice) -> Tensor:
    x = torch.stack([getattr(layer, side)[:, tokens] for layer in layers])
    if side == "keys":
        positions = torch.stack([layer.positions[tokens] for layer in layers])
        spec = Spec({"x": Array(tuple(x.shape), x.dtype)}, place=place)
        unrope = Unrope()
        unrope.plan(spec)
        x = unrope.encode({"x": x, "positions": positions}, spec)["x"]
    return x.float().permute(2, 0, 1, 3).flatten(1)
