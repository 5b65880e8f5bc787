"""Attention on a CPU that reads grouped keys and values as they are.

Where several query heads share a key head, transformers' own ``sdpa`` attention repeats keys and values for each query
head whenever there is a mask. For a question over a long cache that costs as much as attending. torch can read them as
they are: the results equal those over repeated keys to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "kvtool-grouped"
"""The name that transformers knows this attention by."""

# Options that only transformers' own function computes, or refuses.
_OTHER_OPTIONS = ("position_bias", "softcap", "cache")


def use_grouped_attention(model: Any) -> None:
    """Gives a transformers ``model`` this attention, if it is on a CPU and has transformers' ``sdpa`` attention.

    On a GPU the repetition stays: without it, torch falls back to its slowest kernel there.
    """
    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, transformers.AttentionMaskInterface()["sdpa"])
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    if on_cpu and model.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention [B, S, Q, Dv] of queries [B, Q, S, D] over keys [B, H, N, D] and values [B, H, N, Dv]."""
    is_grouped = getattr(module, "num_key_value_groups", 1) > 1 and query.device.type == "cpu"
    # Without a mask, transformers does not repeat them either, but for the way it packs a single query.
    is_repeated = attention_mask is not None or query.shape[2] == 1
    # Gradients of repeated keys are summed in another order, and calibrations depend on every bit of them.
    is_usual = not torch.is_grad_enabled() and all(options.get(name) is None for name in _OTHER_OPTIONS)
    if not (is_grouped and is_repeated and is_usual):
        options |= {"dropout": dropout, "scaling": scaling}
        output, _ = transformers.AttentionInterface()["sdpa"](
            module, query, key, value, attention_mask, **options
        )
        return output, None
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None
