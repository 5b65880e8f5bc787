"""Whether a model's attention is plain, a softmax over scaled products: tried out, by running it on a few tokens.

No model-specific code: soft caps, sinks and biases give something else than what is computed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvtool.engines import transformers as engine
from kvtool.engines.attention.attending import attending, eager_attention
from kvtool.engines.attention.parallel_encoding import attend
from kvtool.engines.cache import Parallel
from kvtool.model.model import Model

TRIED = 8
"""Tokens that are run."""

LARGEST = 30.0
"""Queries are scaled so that no score is larger: only large ones show a soft cap."""

TOLERANCE = 1e-4
"""Largest difference in float32, relative to the largest value, that rounding explains."""


def is_plain(model: Model) -> bool:
    """Whether the attention of each of the model's layers is plain."""
    try:
        _try_out(model)
    except _NotPlain:
        return False
    return True


class _NotPlain(Exception):
    pass


@torch.no_grad()
def _try_out(model: Model) -> None:
    tried: set[int] = set()

    def compare(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen: Tensor,
        scaling: float | None,
        **options: Any,
    ) -> Tensor:
        eager = eager_attention(module)
        if eager is None or scaling is None or query.shape[1] % key.shape[1]:
            raise _NotPlain
        q, k, v = query.float(), key.float(), value.float()
        q = q * LARGEST / (scaling * q.norm(dim=-1).max() * k.norm(dim=-1).max())
        added = q.new_zeros(seen.shape).masked_fill_(~seen, torch.finfo(q.dtype).min)
        expected: Tensor = eager(module, q, k, v, added, scaling=scaling, **options)[0]
        found = attend(q, k, v, seen, scaling, Parallel(temperature=1.0, scale=1.0), slice(0))
        if (found - expected).abs().max() > TOLERANCE * v.abs().max():
            raise _NotPlain
        tried.add(module.layer_idx)
        return expected.to(query.dtype)

    with attending(model, compare, lambda _: _NotPlain()):
        ids = torch.arange(TRIED)
        model.model.base_model(
            input_ids=ids[None].to(engine.device_of(model)),
            attention_mask=engine.causal_masks(model, ids, TRIED),
            use_cache=False,
        )
    if len(tried) != len(engine.windows(model)):
        raise _NotPlain
