"""Attention to layers whose heads hold different tokens, without padding or copying them.

For each key head, one softmax over the tokens that it holds and those that were appended. A family whose attention is
something else, such as one with sinks or a soft cap, is computed by its own eager function over a padded copy of the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvtool.engines.attention.capture import step_tokens
from kvtool.engines.attention.override import family_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.ragged import PackedTokens, RaggedLayer
from kvtool.errors import ModelError
from kvtool.model.model import Model


class PrunedAttention:
    """Attention to ``cache``, some layers of which do not hold every token, for ``override_attention``.

    ``implementation`` is the model's own attention, for layers that hold them all. ``is_softmax`` says whether it is a softmax
    over scaled products. Raises ``ModelError`` for biases where it is not.
    """

    def __init__(self, model: Model, cache: DocumentCache, implementation: str, *, is_softmax: bool) -> None:
        self.model, self.layers = model, cache.layers
        self.implementation, self.is_softmax = implementation, is_softmax
        biased = any(isinstance(x, RaggedLayer) and x.packed.bias is not None for x in cache.layers)
        if biased and not is_softmax:
            raise ModelError(
                model.name,
                f"the attention of {model.config.model_type} is not a softmax over scaled products, to which "
                "the biases of this cache could be added",
                "compress with a recipe that makes no biases",
            )

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
        if not isinstance(layer, RaggedLayer):
            return family_attention(self.implementation, module, query, key, value, mask, scaling, **options)
        self._refuse_derived(layer, key, value)
        packed, step = layer.packed, step_tokens(max(layer.packed.lengths) + key.shape[2])
        # A few queries at a time, so that memory stays at their scores.
        steps = list(zip(query.split(step, 2), mask.split(step, 2), strict=True))
        if self.is_softmax and scaling is not None:
            parts = [softmax_attention(some, packed, key, value, seen, scaling) for some, seen in steps]
            return torch.cat(parts, 1)
        keys, values = pad(packed.keys, packed.lengths, key), pad(packed.values, packed.lengths, value)
        parts = []
        for some, seen in steps:
            shown = head_masks(packed, seen, key.shape[2], query.shape[1] // key.shape[1])
            parts.append(family_attention("eager", module, some, keys, values, shown, scaling, **options))
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
    query: Tensor, packed: PackedTokens, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Attention [B, S, Q, Dv] of queries [B, Q, S, D] over ``packed`` tokens and the appended ``key`` [B, H, A, D] and
    ``value`` [B, H, A, Dv].

    ``mask``, bool [B, 1, S, n + A], shows tokens by their places: the document's n, then the appended ones.
    """
    batch, n_queries, n_appended = len(query), query.shape[2], key.shape[2]
    heads, most = key.shape[1], max(packed.lengths)
    group = query.shape[1] // heads
    # By key head: query heads that share one are rows of one product.
    by_head = query.unflatten(1, (heads, group)).transpose(0, 1).flatten(2, 3)
    scores = by_head.new_full((*by_head.shape[:3], most + n_appended), -torch.inf, dtype=torch.float32)
    keys, values = packed.keys.split(packed.lengths), packed.values.split(packed.lengths)
    for head, length in enumerate(packed.lengths):
        scores[head, ..., :length] = by_head[head] @ keys[head].mT
    scores[..., most:] = by_head @ key.transpose(0, 1).mT
    scores *= scaling
    if packed.bias is not None:
        for head, bias in enumerate(packed.bias.split(packed.lengths)):
            scores[head, ..., : len(bias)] += bias
    _hide(scores.unflatten(2, (group, n_queries)), packed, mask)
    weights = scores.softmax(-1).to(value.dtype)
    attended = weights[..., most:] @ value.transpose(0, 1)
    for head, length in enumerate(packed.lengths):
        attended[head] += weights[head, ..., :length] @ values[head]
    by_query = attended.unflatten(2, (group, n_queries)).permute(1, 3, 0, 2, 4)
    return by_query.reshape(batch, n_queries, heads * group, -1)


def _hide(scores: Tensor, packed: PackedTokens, mask: Tensor) -> None:
    """Lowers ``scores`` [H, B, G, S, P + A], P being the most tokens of a head, where ``mask`` hides the token."""
    n_appended = scores.shape[-1] - max(packed.lengths)
    document, appended = mask.split([mask.shape[-1] - n_appended, n_appended], -1)
    if not appended.all():
        scores[..., -n_appended:].masked_fill_(~appended[None], -torch.inf)
    # Most questions see the whole document.
    if document.all():
        return
    for head, indices in enumerate(packed.indices.split(packed.lengths)):
        scores[head, ..., : len(indices)].masked_fill_(~document[..., indices], -torch.inf)


def head_masks(packed: PackedTokens, mask: Tensor, n_appended: int, group: int) -> Tensor:
    """``mask``, bool [B, 1, S, n + A] by tokens' places, as [B, Q, S, P + A]: of the keys that ``pad`` makes."""
    most = max(packed.lengths)
    document, appended = mask.split([mask.shape[-1] - n_appended, n_appended], -1)
    seen = mask.new_zeros(len(mask), len(packed.lengths), mask.shape[2], most + n_appended)
    seen[..., most:] = appended
    for head, indices in enumerate(packed.indices.split(packed.lengths)):
        seen[:, head, :, : len(indices)] = document[:, 0, :, indices]
    return seen.repeat_interleave(group, 1)


def pad(states: Tensor, lengths: tuple[int, ...], appended: Tensor) -> Tensor:
    """Packed ``states`` [N, D] as [B, H, P + A, D], before the ``appended`` [B, H, A, D]: zeros fill what a head lacks."""
    most = max(lengths)
    padded = appended.new_zeros(*appended.shape[:2], most + appended.shape[2], appended.shape[3])
    padded[:, :, most:] = appended
    for head, some in enumerate(states.split(lengths)):
        padded[:, head, : len(some)] = some
    return padded
