"""A segment whose layers are reduced by a prune stage, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kvtool.codecs.errors import CodecError, NeedsError
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.geometry import LayerGeometry
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.pipeline import Inputs
from kvtool.codecs.prune.stage import Prune, spread, taken_inputs
from kvtool.codecs.spec import BY_TOKEN, POSITIONS


@dataclass(frozen=True)
class Segment:
    """What is to be encoded: ``layer`` gives each layer, ``inputs`` has a tensor for each.

    ``original`` is the segment before it was pruned, if it was.
    """

    contents: Contents
    layer: Callable[[int], LayerKV]
    inputs: Inputs
    original: Segment | None = None

    def suited(self, token_ids: Tensor) -> Segment:
        """The same by a pipeline that suits the segment."""
        coded = self.original if self.original and self.contents.whole else self
        return replace(self, contents=self.contents.suited(coded.layer, coded.inputs, token_ids))

    def encode(self, group: range, token_ids: Tensor) -> dict[str, Tensor]:
        """A group's stored tensors (``Contents.encode``)."""
        layers = [self.layer(index) for index in group]
        if not (self.original and self.contents.whole):
            return self.contents.encode(group, layers, self.inputs, token_ids)
        spreads = [
            spread(layer, self.original.layer(index)) for index, layer in zip(group, layers, strict=True)
        ]
        coded = self.contents.whole.encode(group, spreads, self.original.inputs, token_ids)
        return self.contents.stored_tokens(group, layers) | coded


def pruned(segment: Segment) -> Segment:
    """The segment as its pipeline's prune stage reduces it; the same where there is none.

    The scores of all layers are in memory, and one layer at a time. Raises CodecError for a segment that is pruned already,
    and NeedsError for an input that is wanted and not given.
    """
    stage, contents = segment.contents.pipeline.prune, segment.contents
    if stage is None:
        return segment
    if missing := stage.needs - {POSITIONS} - segment.inputs.keys():
        raise NeedsError(missing)
    if contents.start is None or contents.geometry.is_pruned:
        raise CodecError(f"{stage.label}: the segment has lost tokens already, expected one with all of them")
    kept = _kept(stage, segment)
    sizes = contents.geometry.layers
    reduced = tuple(_reduced_size(stage, size, some) for size, some in zip(sizes, kept, strict=True))

    def layer(index: int) -> LayerKV:
        whole = segment.layer(index)
        return (
            whole if kept[index].all() else stage.reduce(whole, kept[index], inputs_of(segment.inputs, index))
        )

    by_layer = [
        taken_inputs(inputs_of(segment.inputs, index), BY_TOKEN, some, sizes[index].n_heads)
        for index, some in enumerate(kept)
    ]
    inputs = {name: [cut[name] for cut in by_layer] for name in segment.inputs}
    geometry = replace(contents.geometry, layers=reduced)
    return Segment(replace(contents, geometry=geometry), layer, inputs, segment)


def inputs_of(inputs: Inputs, index: int) -> dict[str, Tensor]:
    """The inputs of one layer."""
    return {name: tensors[index] for name, tensors in inputs.items()}


def _kept(stage: Prune, segment: Segment) -> list[Tensor]:
    sizes = segment.contents.geometry.layers
    scores: list[Tensor] = []
    shapes: list[LayerKV] = []
    for index, size in enumerate(sizes):
        rope = next(iter(segment.contents.place(range(index, index + 1)).ropes), None)
        layer = segment.layer(index)
        score = stage.scores(layer, inputs_of(segment.inputs, index), rope)
        # All layers at once would be the whole segment in memory.
        shapes.append(LayerKV(layer.keys.to("meta"), layer.values.to("meta"), layer.positions))
        if tuple(score.shape) != (size.n_heads, size.tokens) or score.isnan().any():
            raise CodecError(
                f"layer {index}: {stage.label}: scores are {list(score.shape)}, or hold NaN, expected "
                f"[{size.n_heads}, {size.tokens}]"
            )
        scores.append(score)
    masks = stage.choose(scores, shapes, [inputs_of(segment.inputs, index) for index in range(len(sizes))])
    # Heads that hold the same tokens need not be packed.
    return [mask[:1] if bool((mask == mask[:1]).all()) else mask for mask in masks]


def _reduced_size(stage: Prune, size: LayerGeometry, kept: Tensor) -> LayerGeometry:
    counts: Sequence[int] = kept.sum(1).tolist()
    if kept.all():
        return size
    if len(kept) == 1:
        return replace(size, tokens=counts[0], biased=stage.biased)
    return LayerGeometry(sum(counts), (1, size.keys[1]), (1, size.values[1]), tuple(counts), stage.biased)
