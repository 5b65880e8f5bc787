"""Documents one after the other, some of them pruned: the tokens that they keep are moved as they are.

Nothing of a document is recomputed. Text without a cache is run after what stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from kvtool.blending.cache import BlendedCache
from kvtool.blending.layout import Layout, Placed
from kvtool.codecs import Geometry, LayerKV
from kvtool.codecs.rope import Rope
from kvtool.counts import counted
from kvtool.engines.attention.cache_attention import cache_attention, refuse_unreadable
from kvtool.engines.ragged import appended, joined_layer
from kvtool.engines.rope import Rotations, moved
from kvtool.engines.transformers import feed, new_cache
from kvtool.kernels.threads import thread_pool
from kvtool.model.model import Model
from kvtool.system.trace import Trace

_Part = Sequence[LayerKV]
"""Some of the prompt's tokens, layer by layer; positions are places in the prompt."""


def join(layout: Layout, model: Model, rotations: Rotations, trace: Trace) -> BlendedCache:
    """The cache of ``layout``, which holds no more than its segments do. Raises ``ModelError`` as ``load_cache`` does."""
    for segment in layout.segments:
        refuse_unreadable(model, segment.artifact.contents.geometry)
    parts: list[_Part] = []
    end = 0
    for segment in layout.segments:
        parts += _computed(layout, model, parts, range(end, segment.start), trace)
        with trace.span("read", segment.document):
            parts.append(_moved(segment, rotations))
        end = segment.stop
    parts += _computed(layout, model, parts, range(end, len(layout.token_ids)), trace)
    cache = _cache(layout, parts, len(layout.token_ids))
    cache.recomputed = int((~layout.cached).sum())
    return cache


def joining_nbytes(layout: Layout) -> int:
    """Bytes of memory that ``join`` takes at most: the cache, and a copy of its parts."""
    parts = [segment.artifact.contents.geometry for segment in layout.segments]
    n_text = int((~layout.cached).sum())
    layers = tuple(size.whole(n_text) for size in parts[0].layers)
    return 2 * Geometry.joined([*parts, Geometry(parts[0].dtype, n_text, layers)]).cache_nbytes


def _moved(segment: Placed, rotations: Rotations) -> _Part:
    artifact, by = segment.artifact, segment.moved
    with thread_pool() as pool:
        groups = list(pool.map(artifact.group, artifact.contents.groups))
    layers = [layer for group in groups for layer in group]
    if not by:
        return layers

    def turned(x: Tensor, rope: Rope) -> Tensor:
        return moved(x, rope, by).to(x.dtype) if rope.inv_freq else x

    return [
        replace(
            layer,
            keys=turned(layer.keys, rotations.keys[index]),
            values=turned(layer.values, rotations.values[index]),
            positions=layer.positions + by,
        )
        for index, layer in enumerate(layers)
    ]


def _computed(layout: Layout, model: Model, parts: Sequence[_Part], gap: range, trace: Trace) -> list[_Part]:
    """The tokens of ``gap``, run after ``parts``; nothing where there are none."""
    if not gap:
        return []
    cache = _cache(layout, parts, gap.start) if parts else new_cache(model, len(gap))
    with trace.span("recompute", f"{counted(len(gap), 'token')} of text"), cache_attention(model, cache):
        feed(model, layout.token_ids[gap.start : gap.stop].tolist(), cache)
    return [[appended(layer, gap) for layer in cache.layers]]


def _cache(layout: Layout, parts: Sequence[_Part], n_tokens: int) -> BlendedCache:
    cache = BlendedCache(layout, len(parts[0]))
    cache.layers = [joined_layer(layers, n_tokens) for layers in zip(*parts, strict=True)]
    return cache
