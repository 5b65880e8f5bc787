"""A model's attention, computed by a function of ours for as long as a context lasts.

No model-specific code: transformers' ``AttentionInterface`` calls the function in place of the family's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
import transformers
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvtool.model.model import Model

NAME = "kvtool-override"
"""The name that transformers knows the function by."""

Attention: TypeAlias = Callable[..., Tensor]

_attention: ContextVar[Attention] = ContextVar("_attention")


@contextmanager
def override_attention(model: Model, attention: Attention, refusal: Exception) -> Iterator[None]:
    """Makes ``attention`` the model's attention; the model is as it was afterwards.

    The function is called with the module, queries [B, Q, S, D], keys [B, H, N, D], values [B, H, N, Dv], a boolean mask
    [B, 1, S, N], the scaling or None, and the family's own options. It returns [B, S, Q, Dv]. Raises ``refusal`` where the
    model's attention cannot be replaced.
    """
    transformers.AttentionInterface.register(NAME, _attend)
    transformers.AttentionMaskInterface.register(NAME, _mask)
    config = model.model.config.get_text_config(decoder=True)
    before, token = config._attn_implementation, _attention.set(attention)
    try:
        model.model.set_attn_implementation(NAME)
        if config._attn_implementation != NAME:
            raise refusal
        yield
    finally:
        model.model.set_attn_implementation(before)
        _attention.reset(token)


def can_override(model: Model) -> bool:
    """Whether ``override_attention`` would not raise its ``refusal``."""
    refusal = ValueError()
    try:
        with override_attention(model, family_attention, refusal):
            return True
    except ValueError as error:
        if error is not refusal:
            raise
        return False


def eager_attention(module: Any) -> Callable[..., Any] | None:
    """The family's own attention: each that takes part in the interface has it beside its module, as the default."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def family_attention(
    implementation: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    **options: Any,
) -> Tensor:
    """What the family's own attention gives, of ``implementation``; shapes as of ``override_attention``.

    The mask is boolean, or for eager attention what is added to the scores.
    """
    eager = eager_attention(module)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    if function is eager and mask.dtype == torch.bool:
        mask = hidden(mask, query.dtype)
    # Families that scale by themselves take no scaling.
    scaled = options if scaling is None else {**options, "scaling": scaling}
    return function(module, query, key, value, mask, **scaled)[0]  # type: ignore[no-any-return]


def hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What eager attention adds to the scores: nothing where the boolean ``mask`` is true, else the least number."""
    return mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    return _attention.get()(module, query, key, value, attention_mask, scaling, **options), None


def _mask(*args: Any, **options: Any) -> Tensor:
    """The mask, always: transformers makes none where scaled_dot_product_attention needs none."""
    options |= {"allow_is_causal_skip": False}
    return transformers.AttentionMaskInterface()["sdpa"](*args, **options)  # type: ignore[no-any-return]
