"""A model's attention, computed by a function of ours for as long as a context lasts.

No model-specific code: transformers' ``AttentionInterface`` calls it in place of the family's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from kvtool.model.model import Model

_NAME = "kvtool"

Attention: TypeAlias = Callable[..., Tensor]

_attention: ContextVar[Attention] = ContextVar("_attention")


@contextmanager
def attending(model: Model, attention: Attention, refusal: Callable[[Model], Exception]) -> Iterator[None]:
    """The model's attention is ``attention`` meanwhile: of the module, queries, keys, values, a boolean mask
    [B, 1, P, N], the scaling or None, and a family's own options, it gives [B, P, Q, Dv].

    The model is as it was afterwards. Raises ``refusal`` of a model that has no attention that can be replaced.
    """
    config = model.model.config.get_text_config(decoder=True)
    before, token = config._attn_implementation, _attention.set(attention)
    try:
        model.model.set_attn_implementation(_NAME)
        if config._attn_implementation != _NAME:
            raise refusal(model)
        yield
    finally:
        model.model.set_attn_implementation(before)
        _attention.reset(token)


def eager_attention(module: Any) -> Callable[..., Any] | None:
    """The family's own attention: each that takes part in the interface has it beside its module, as the default."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


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
    """transformers makes no mask where scaled_dot_product_attention knows it by itself: here always."""
    return sdpa_mask(*args, **options | {"allow_is_causal_skip": False})  # type: ignore[no-any-return]


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
