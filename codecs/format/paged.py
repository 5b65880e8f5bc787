"""Segments whose tokens can be read page by page, and the bounds that tell which pages to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.codecs.entropy.pages import HIGH, LOW, Pages
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Array
from kvtool.codecs.stage import Stage


@dataclass(frozen=True)
class Paged:
    """A segment in pages of ``page`` tokens, the last of which may be short.

    ``keys`` has the smallest and the largest key of each page and channel in two tensors, which are read whole. Of all other
    tensors of a layer, a page's tokens are a run of bytes.
    """

    contents: Contents
    page: int

    @classmethod
    def of(cls, contents: Contents) -> Paged | None:
        """None for a segment that cannot be read so: of another pipeline, or one that has lost tokens."""
        page = _page(contents.pipeline)
        if page is None or contents.start is None or contents.geometry.is_pruned:
            return None
        return cls(contents, page)

    @property
    def n_tokens(self) -> int:
        return self.contents.geometry.n_tokens

    @property
    def n_pages(self) -> int:
        return -(-self.n_tokens // self.page)

    def tokens(self, page: int) -> range:
        """The tokens of a page."""
        return range(page * self.page, min((page + 1) * self.page, self.n_tokens))

    def bound_names(self, layer: int) -> tuple[str, str]:
        """The tensors that have a row for each page."""
        quantized = len(self.contents.pipeline.keys) > 1
        return tuple(
            f"layers.{layer:04d}.keys.{name}" for name in (("zero", "scale") if quantized else (LOW, HIGH))
        )  # type: ignore[return-value]

    def arrays(self, layer: int) -> dict[str, Array]:
        """The tensors of a layer that have a row for each token, by their full names."""
        arrays = self.contents.arrays(range(layer, layer + 1))
        return {name: array for name, array in arrays.items() if name not in self.bound_names(layer)}

    def bounds(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        """The smallest and largest key of each page and channel, [P, H, D] float32 each. Raises CodecError for NaN."""
        first, second = (tensors[name].float() for name in self.bound_names(layer))
        keys = self.contents.pipeline.keys
        if isinstance(keys[0], Group):
            second = first + second * ((1 << keys[0].bits) - 1)
        if not (first.isfinite().all() and second.isfinite().all()):
            raise CodecError(f"layer {layer}: bounds of keys hold NaN or infinity")
        return first, second

    def decode(self, layer: int, pages: Sequence[int], tensors: Mapping[str, Tensor]) -> LayerKV:
        """The tokens of ``pages``, ascending, of one layer.

        ``tensors`` has a layer's tensors: the rows of these pages, and of the bounds, or of ``arrays``, of their tokens.
        """
        places = torch.cat([torch.arange(self.tokens(p).start, self.tokens(p).stop) for p in pages])
        assert self.contents.start is not None
        prefix = f"layers.{layer:04d}."
        size = self.contents.geometry.layers[layer]
        keys, values = (
            Array((heads, len(places), channels), self.contents.geometry.dtype)
            for heads, channels in (size.keys, size.values)
        )
        stored = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        place = self.contents.place(range(layer, layer + 1))
        # Tokens of some pages are coded as a segment of these alone would be.
        (decoded,) = self.contents.pipeline.decode(
            stored, keys, values, [places + self.contents.start], place
        )
        return decoded


def _page(pipeline: Pipeline) -> int | None:
    """The tokens of a page, where every tensor but the bounds has a row for each token."""
    if pipeline.grouped or not (pipeline.keys and pipeline.values):
        return None
    (*before, last), (*before_values, last_values) = pipeline.keys, pipeline.values
    if not (isinstance(last, Pages) and isinstance(last_values, Pages) and not last_values.bounds):
        return None
    page, keys = last.page, tuple(before)
    bounded = (last.bounds and not keys) or (len(keys) == 1 and _is_bounded(keys[0], page))
    by_token = all(isinstance(stage, Group) and stage.axis == "channel" for stage in before_values)
    return page if bounded and by_token else None


def _is_bounded(stage: Stage, page: int) -> bool:
    """Whether a stage's scales and zeros bound the keys of each page."""
    return isinstance(stage, Group) and stage.axis == "token" and stage.group == page
