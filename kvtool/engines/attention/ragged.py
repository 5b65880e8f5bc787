"""Attention to layers whose heads hold different tokens, without padding or copying them.

For each key head, one softmax over the tokens that it holds and those that were appended. A family whose attention is
something else, such as one with sinks or a soft cap, is computed by its own eager function over a padded copy of the layer,
biases in its mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvtool.engines.attention.capture import step_tokens
from kvtool.engines.attention.override import family_attention, hidden
from kvtool.engines.cache import DocumentCache
from kvtool.engines.paged import PagedLayer
from kvtool.engines.ragged import RaggedLayer, UniformLayer
from kvtool.errors import ModelError
from kvtool.kernels.dispatch import Packed, packed_attention
from kvtool.model.model import Model


class PrunedAttention:
    """Attention to ``cache``, some layers of which do not hold every token, for ``override_attention``.

    ``implementation`` is the model's own attention, for layers that hold them all. ``is_softmax`` says whether it is a softmax
    over scaled products.
    """

    def __init__(self, model: Model, cache: DocumentCache, implementation: str, *, is_softmax: bool) -> None:
        self.model, self.layers = model, cache.layers
        self.implementation, self.is_softmax = implementation, is_softmax

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scaling: float | None,
        **options: Any,
    ) -> Tensor:
        layer = self.layers[module.layer_idx]
        if isinstance(layer, PagedLayer):
            key, value = layer.read(query, scaling)
        if isinstance(layer, UniformLayer):
            mask = mask[..., layer.columns]
        if not isinstance(layer, RaggedLayer):
            return family_attention(self.implementation, module, query, key, value, mask, scaling, **options)
        self._refuse_derived(layer, key, value)
        packed, step = layer.packed, step_tokens(max(layer.packed.lengths) + key.shape[2])
        # A few queries at a time, so that memory stays at their scores.
        steps = zip(torch.split(query, step, 2), torch.split(mask, step, 2), strict=True)
        if self.is_softmax and scaling is not None:
            parts = [softmax_attention(some, packed, key, value, seen, scaling) for some, seen in steps]
            return torch.cat(parts, 1)
        keys, values = pad(packed, packed.keys, key), pad(packed, packed.values, value)
        parts = []
        for some, seen in steps:
            added = added_scores(packed, seen, key.shape[2], query.shape[1] // key.shape[1], query.dtype)
            parts.append(family_attention("eager", module, some, keys, values, added, scaling, **options))
        return torch.cat(parts, 1)

    def _refuse_derived(self, layer: RaggedLayer, key: Tensor, value: Tensor) -> None:
        """Refuses a family that hands over other keys and values than the cache holds, as latent attention does."""
        appended = layer.appended.keys, layer.appended.values
        for given, held in zip((key, value), appended, strict=True):
            if held is None or given.shape != held.shape or given.data_ptr() != held.data_ptr():
                raise ModelError(
                    self.model.name,
                    f"{self.model.config.model_type} makes its keys from what its cache holds, so that heads cannot "
                    "hold different tokens",
                    "compress with a recipe that prunes nothing",
                )


def softmax_attention(
    query: Tensor, packed: Packed, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Attention [B, S, Q, Dv] of queries [B, Q, S, D] over ``packed`` tokens and the appended ``key`` [B, H, A, D] and
    ``value`` [B, H, A, Dv].

    ``mask``, bool [B, 1, S, n + A], shows tokens by their places: the document's n, then the appended ones.
    """
    batch, n_heads, _, _ = key.shape
    by_head = query.reshape(batch, n_heads, -1, *query.shape[2:]).transpose(0, 1)
    seen = mask[:, 0].expand(batch, -1, -1)
    attended = packed_attention(by_head, packed, key.transpose(0, 1), value.transpose(0, 1), seen, scaling)
    return attended.permute(1, 3, 0, 2, 4).flatten(2, 3)


def added_scores(packed: Packed, mask: Tensor, n_appended: int, group: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores [B, Q, S, P + A] of the keys that ``pad`` makes: biases, and what hides others.

    ``mask``, bool [B, 1, S, n + A], shows tokens by their places.
    """
    n_document, most = mask.shape[-1] - n_appended, max(packed.lengths)
    shown = mask.new_zeros(len(mask), len(packed.lengths), mask.shape[2], most + n_appended)
    shown[..., most:] = mask[..., n_document:]
    for number, head in enumerate(packed.heads):
        shown[:, number, :, : packed.lengths[number]] = mask[:, 0, :, packed.places[head]]
    added = hidden(shown, dtype)
    if packed.bias is not None:
        for number, head in enumerate(packed.heads):
            added[:, number, :, : packed.lengths[number]] += packed.bias[head].to(dtype)
    return added.repeat_interleave(group, 1)


def pad(packed: Packed, states: Tensor, appended: Tensor) -> Tensor:
    """``states`` [N, D] of ``packed`` as [B, H, P + A, D], the ``appended`` [B, H, A, D] last: zeros fill what a head lacks."""
    batch, n_heads, n_appended, size = appended.shape
    most = max(packed.lengths)
    padded = appended.new_zeros(batch, n_heads, most + n_appended, size)
    padded[:, :, most:] = appended
    for number, head in enumerate(packed.heads):
        padded[:, number, : packed.lengths[number]] = states[head]
    return padded
