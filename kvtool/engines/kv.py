"""Segments' keys and values, taken out of a cache and put into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvtool.codecs import KV, LayerKV
from kvtool.engines.cache import DocumentCache, refuse_pruned
from kvtool.engines.capabilities import rope_description
from kvtool.model.model import Model


def slice_kv(model: Model, cache: DocumentCache, start: int, token_ids: Sequence[int], position: int) -> KV:
    """The KV of ``token_ids``, which ``cache`` holds from index ``start`` on, as views.

    ``position`` is that of the first token.
    """
    refuse_pruned(cache, "taking out a segment")
    end = start + len(token_ids)
    positions = torch.arange(position, position + len(token_ids))
    segment = slice(start, end)
    layers = tuple(LayerKV(x.keys[0, :, segment], x.values[0, :, segment], positions) for x in cache.layers)
    return KV(layers, torch.tensor(token_ids, dtype=torch.int64), rope_description(model))


def append_kv(cache: DocumentCache, kv: KV) -> None:
    """Copies ``kv`` to the end of ``cache``."""
    for layer, part in zip(cache.layers, kv.layers, strict=True):
        layer.place(part)
