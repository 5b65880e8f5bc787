"""Whether a model attends to the keys and values that its cache holds, found by running it on a few tokens.

No model-specific code: latent attention hands over others than it caches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kvtool.engines.attention.override import family_attention, override_attention
from kvtool.engines.transformers import feed, new_cache
from kvtool.model.model import Model

CHECKED_TOKENS = 4
"""The number of tokens that are run."""


def is_attention_to_cache(model: Model) -> bool:
    """Whether every layer's attention is given the keys and values that were cached."""
    try:
        _check(model)
    except _OtherKeys:
        return False
    return True


class _OtherKeys(Exception):
    """Raised by the first layer whose attention is given others."""


def _check(model: Model) -> None:
    cache = new_cache(model, CHECKED_TOKENS)

    def compare(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None, **rest: Any
    ) -> Tensor:
        layer = cache.layers[module.layer_idx]
        for given, held in ((key, layer.keys), (value, layer.values)):
            if held is None or given.shape != held.shape or given.data_ptr() != held.data_ptr():
                raise _OtherKeys
        return family_attention("eager", module, query, key, value, mask, scale, **rest)

    with override_attention(model, compare, _OtherKeys()):
        feed(model, range(1, 1 + CHECKED_TOKENS), cache)
