"""Whether a model's attention is a softmax over scaled products, found by running the model on a few tokens.

No model-specific code: soft caps, sinks and biases give something else than what is computed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvtool.engines.attention.override import eager_attention, override_attention
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


def is_softmax_attention(model: Model) -> bool:
    """Whether every layer's attention is a softmax over scaled products."""
    try:
        _check(model)
    except _NotSoftmax:
        return False
    return True


class _NotSoftmax(Exception):
    """Raised by the first layer whose attention is something else."""


@torch.no_grad()
def _check(model: Model) -> None:
    checked: set[int] = set()

    def compare(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None, **rest: Any
    ) -> Tensor:
        eager = eager_attention(module)
        if eager is None or scale is None or query.shape[1] % key.shape[1]:
            raise _NotSoftmax
        q, k, v = query.float(), key.float(), value.float()
        q = q * LARGEST / (scale * q.norm(dim=-1).max() * k.norm(dim=-1).max())
        added = q.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(q.dtype).min)
        expected: Tensor = eager(module, q, k, v, added, scaling=scale, **rest)[0]
        softmax = adaptive_attention(q, k, v, mask, scale, _PLAIN, slice(0))
        if (softmax - expected).abs().max() > TOLERANCE * v.abs().max():
            raise _NotSoftmax
        checked.add(module.layer_idx)
        return expected.to(query.dtype)

    with override_attention(model, compare, _NotSoftmax()):
        ids = torch.arange(CHECKED_TOKENS)
        model.model.base_model(
            input_ids=ids[None].to(device_of(model)),
            attention_mask=causal_masks(model, ids, CHECKED_TOKENS),
            use_cache=False,
        )
    if len(checked) != len(windows(model)):
        raise _NotSoftmax
