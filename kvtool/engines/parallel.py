"""Reads a cache of documents that were encoded in parallel: each under the shared prefix, none seeing another.

Attention over several documents that were each read alone is flatter than over one text, and gives all of them too
much. Adaptive parallel encoding (arXiv 2502.05431) sharpens attention within the documents by a temperature T, and
lowers what they weigh against prefix and question by a scale S. The model is not changed: transformers'
``AttentionInterface`` calls a function here while such a cache is read. No model-specific code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ..errors import ModelError
from ..model import Model
from .cache import DocumentCache, Parallel
from .watching import step_tokens

_PARALLEL = "kvtool-parallel"

Attention: TypeAlias = Callable[..., Tensor]

_attention: ContextVar[Attention] = ContextVar("_attention")


@contextmanager
def reading(model: Model, cache: DocumentCache | None) -> Iterator[None]:
    """What ``model`` reads behind ``cache`` meanwhile, it reads as ``cache.parallel`` says; if that is None, as ever.

    The model is as it was afterwards. That its attention can be replaced is ``engines.plain``'s to find out.
    """
    parallel = cache.parallel if cache is not None else None
    if cache is None or parallel is None:
        yield
        return
    documents = slice(parallel.prefix_tokens, len(cache.token_ids))

    def read(
        module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float, **_: Any
    ) -> Tensor:
        # A few queries at a time, so that memory stays at their scores.
        step = step_tokens(key.shape[2])
        passes = [slice(start, start + step) for start in range(0, query.shape[2], step)]
        parts = [
            attend(query[:, :, some], key, value, seen[:, :, some], scaling, parallel, documents)
            for some in passes
        ]
        return torch.cat(parts, 1)

    with attending(model, read):
        yield


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scaling: float,
    parallel: Parallel,
    documents: slice,
) -> Tensor:
    """Attention [B, P, Q, Dv] of queries [B, Q, P, D] over keys [B, H, N, D] and values [B, H, N, Dv], as far as they
    are ``seen``, bool [B, 1, P, N].

    That over ``documents`` is a softmax of scores / T, and weighs exp(S T L), where L is the log-sum-exp of scores / T.
    That over prefix, question and answer weighs exp(L') by their scores as they are. Both together are one softmax, for
    which (S T - 1) L is added to the scores / T of documents. With T = S = 1 it is plain attention.
    """
    batch, heads, looking, _ = query.shape
    group = heads // key.shape[1]
    # Query heads that share a key head are rows of one product, without repeating keys.
    rows = query.reshape(batch, key.shape[1], group * looking, -1)
    scores = (rows @ key.mT).float() * scaling
    scores.masked_fill_(~seen.repeat(1, 1, group, 1), -torch.inf)
    own = scores[..., documents]
    own /= parallel.temperature
    # A sliding window may have left all documents behind.
    weight = own.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)
    own += (parallel.scale * parallel.temperature - 1) * weight
    looked = scores.softmax(-1).to(value.dtype) @ value
    return looked.reshape(batch, heads, looking, -1).transpose(1, 2)


@contextmanager
def attending(model: Model, attention: Attention) -> Iterator[None]:
    """The model's attention is ``attention`` meanwhile: of the module, queries, keys, values, a boolean mask
    [B, 1, P, N], the scaling or None, and a family's own options, it gives [B, P, Q, Dv].

    Raises ModelError for a model that has no attention that can be replaced.
    """
    config = model.model.config.get_text_config(decoder=True)
    before, token = config._attn_implementation, _attention.set(attention)
    try:
        model.model.set_attn_implementation(_PARALLEL)
        if config._attn_implementation != _PARALLEL:
            raise not_plain(model)
        yield
    finally:
        model.model.set_attn_implementation(before)
        _attention.reset(token)


def not_plain(model: Model) -> ModelError:
    return ModelError(
        f"{model.name}: the attention of {model.config.model_type} is not a softmax over scaled products that goes through "
        "transformers' AttentionInterface, so that documents encoded in parallel cannot be read with it; blend with "
        "another --policy (kvtool ask --policies lists them)"
    )


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


AttentionInterface.register(_PARALLEL, _attend)
AttentionMaskInterface.register(_PARALLEL, _mask)
