"""What a model's attention can do, found by running the model on a few tokens.

No model-specific code: soft caps, sinks and biases give something else than what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kvtool.engines.attention.override import eager_attention, hidden, override_attention
from kvtool.engines.attention.parallel_encoding import adaptive_attention
from kvtool.engines.cache import ParallelEncoding
from kvtool.engines.transformers import causal_masks, device_of, windows
from kvtool.model.model import Model

CHECKED_TOKENS = 8
"""The number of tokens that are run."""

LARGEST = 30.0
"""Queries are scaled so that no score is larger: only large scores show a soft cap."""

TOLERANCE = 1e-4
"""The largest difference in float32, relative to the largest value, that rounding explains."""

_PLAIN = ParallelEncoding(temperature=1.0, scale=1.0)

_Eager: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A layer's own attention, of queries, keys, values and what is added to the scores."""

_Expected: TypeAlias = Callable[[_Eager, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""Two outputs that are equal if a layer's attention is as asked for, from queries, keys, values, mask and scaling."""


def is_softmax_attention(model: Model) -> bool:
    """Whether every layer's attention is a softmax over scaled products."""
    return _holds(model, _softmax)


def adds_biases(model: Model) -> bool:
    """Whether every layer's attention adds a mask of numbers to its scores right before the softmax."""
    return _holds(model, _doubled)


def _softmax(
    eager: _Eager, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return adaptive_attention(q, k, v, mask, scale, _PLAIN, slice(0)), eager(q, k, v, hidden(mask, q.dtype))


def _doubled(
    eager: _Eager, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """A bias of log 2, and a token that stands there twice."""
    added = hidden(mask, q.dtype)
    biased = added.clone()
    biased[..., 0] += math.log(2)
    keys, values = (torch.cat([x[:, :, :1], x], 2) for x in (k, v))
    return eager(q, k, v, biased), eager(q, keys, values, torch.cat([added[..., :1], added], -1))


class _Otherwise(Exception):
    """Raised by the first layer whose attention is something else."""


def _holds(model: Model, outputs: _Expected) -> bool:
    checked: set[int] = set()

    def compare(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None, **rest: Any
    ) -> Tensor:
        function = eager_attention(module)
        if function is None or scale is None or query.shape[1] % key.shape[1]:
            raise _Otherwise

        def eager(q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
            output: Tensor = function(module, q, k, v, added, scaling=scale, **rest)[0]
            return output

        q, k, v = query.float(), key.float(), value.float()
        q = q * LARGEST / (scale * q.norm(dim=-1).max() * k.norm(dim=-1).max())
        one, other = outputs(eager, q, k, v, mask, scale)
        if (one - other).abs().max() > TOLERANCE * v.abs().max():
            raise _Otherwise
        checked.add(module.layer_idx)
        return other.to(query.dtype)

    try:
        with torch.no_grad(), override_attention(model, compare, _Otherwise()):
            ids = torch.arange(CHECKED_TOKENS)
            model.model.base_model(
                input_ids=ids[None].to(device_of(model)),
                attention_mask=causal_masks(model, ids, CHECKED_TOKENS),
                use_cache=False,
            )
    except _Otherwise:
        return False
    return len(checked) == len(windows(model))
