"""Every layer's queries, and the weights that they give, captured while a model runs.

No model-specific code: ``override`` calls a function here in place of the family's own attention. Softmax attention over
scaled products is computed in blocks that stay in the processor's cache, and without repeating keys for every query head.
Whether a family's attention is of that kind is checked on the last queries of each pass. One that has a soft cap or sinks
is computed by its own eager function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from kvtool.engines.attention.override import eager_attention, override_attention
from kvtool.errors import ModelError
from kvtool.model.model import Model

SCORES = 1 << 20
"""Scores of one head in a pass. They bound a pass's memory, whatever the segment's length."""

BLOCK = {"cpu": 1 << 18}
"""Scores in a block: a megabyte, the size of a core's own cache."""

BLOCK_ELSEWHERE = 1 << 24
"""Scores in a block on other devices, where starting a block costs more."""

CHECKED_QUERIES = 4
"""A pass's last queries, on which a family's attention is compared with softmax attention."""

CHECKED_KEYS = 256
"""The last keys that these see, and are compared over."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""The largest difference between weights that rounding explains."""

OnWeights: TypeAlias = Callable[[int, Tensor], None]


class Observer(Protocol):
    """Takes what one layer's attention does, pass by pass."""

    def on_queries(self, query: Tensor, mask: Tensor, scaling: float | None) -> None:
        """A pass's queries [Q, S, D], and which of the N cached tokens each may see: ``mask`` [S, N].

        Scores are products times ``scaling``; None where the family scales by itself.
        """

    def on_weights(self, first: int, weights: Tensor) -> None:
        """Weights [G, B, N] of some of these queries: G query heads from ``first`` on, and B queries."""


def step_tokens(n_keys: int) -> int:
    """The number of tokens of one pass over ``n_keys`` keys."""
    return max(1, SCORES // max(1, n_keys))


@contextmanager
def capture_attention(model: Model, observers: Sequence[Observer]) -> Iterator[None]:
    """Tells ``observers``, one for each layer, what its attention does; the model is as it was afterwards.

    The model must be called with the masks of ``engines.transformers``. Raises ``ModelError`` for a family whose attention
    cannot be captured.
    """
    with override_attention(model, partial(_captured, model, observers), capture_error(model)):
        yield


def capture_error(model: Model) -> ModelError:
    return ModelError(
        model.name,
        f"the attention of {model.config.model_type} cannot be captured, since it does not go through "
        "transformers' AttentionInterface, so that recipes and policies which measure what is attended to "
        "cannot be used with it",
        "compress with --recipe kivi, which needs neither gradients nor attention, and blend with --policy "
        "legolink",
    )


def _captured(
    model: Model,
    observers: Sequence[Observer],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None,
    **options: Any,
) -> Tensor:
    """Attention [1, S, Q, Dv] under a boolean mask [1, 1, S, N], as ``override_attention`` wants it."""
    eager = eager_attention(module)
    if eager is None:
        raise capture_error(model)
    observer, mask = observers[module.layer_idx], attention_mask[0, 0]
    observer.on_queries(query[0], mask, scaling)

    def family(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        added = query.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(query.dtype).min)
        # Families that scale by themselves take no scaling.
        scaled = options if scaling is None else {**options, "scaling": scaling}
        output, weights = eager(module, query, key, value, added[None, None], **scaled)
        return output, weights[0]

    if scaling is not None and len(mask) > CHECKED_QUERIES and query.shape[1] % key.shape[1] == 0:
        # Eager attention repeats all keys that it is given for each query head: a few, of those that are seen, are enough.
        last = torch.arange(len(mask) - CHECKED_QUERIES, len(mask), device=query.device)
        keys = mask[last[-1]].nonzero()[-CHECKED_KEYS:, 0]
        last = last[mask[last][:, keys].any(-1)]
        sample = query[:, :, last], key[:, :, keys], value[:, :, keys], mask[last][:, keys]
        output, weights = family(*sample)
        blocks: list[Tensor] = []
        block_output = _softmax_attention(*sample, scaling, lambda _, block: blocks.append(block))
        tolerance = TOLERANCE[query.dtype]
        weights_agree = (torch.cat(blocks) - weights).abs().max() <= tolerance
        if weights_agree and (block_output - output).abs().max() <= tolerance * sample[2].abs().max():
            return _softmax_attention(query, key, value, mask, scaling, observer.on_weights)
    output, weights = family(query, key, value, mask)
    observer.on_weights(0, weights)
    return output


def _softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, on_weights: OnWeights
) -> Tensor:
    """Attention [1, S, Q, Dv], block by block: a few queries of all heads that share a key head."""
    group = query.shape[1] // key.shape[1]
    output = query.new_empty(1, len(mask), query.shape[1], value.shape[3])
    added = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    step = max(1, BLOCK.get(query.device.type, BLOCK_ELSEWHERE) // (group * key.shape[2]))
    for start in range(0, len(mask), step):
        block = slice(start, start + step)
        hidden = added[block].repeat(group, 1)
        for head in range(key.shape[1]):
            first = head * group
            heads = slice(first, first + group)
            scores = torch.addmm(hidden, query[0, heads, block].flatten(0, 1), key[0, head].mT, alpha=scaling)
            weights = scores.softmax(-1, dtype=torch.float32)
            attended = weights.to(value.dtype) @ value[0, head]
            output[0, block, heads] = attended.view(group, -1, attended.shape[1]).transpose(0, 1)
            on_weights(first, weights.view(group, -1, weights.shape[1]))
    return output
