"""Attention over documents that were encoded in parallel: each after the shared prefix, none seeing another.

Attention over several documents that were encoded apart is flatter than over one text, and gives all of them too much.
Adaptive parallel encoding (arXiv 2502.05431) sharpens attention within the documents by a temperature T, and lowers their
weight against prefix and question by a scale S. The model's attention is overridden while such a cache is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvtool.engines.attention.capture import step_tokens
from kvtool.engines.attention.override import Attention
from kvtool.engines.cache import DocumentCache, ParallelEncoding
from kvtool.errors import ModelError
from kvtool.model.model import Model


def parallel_attention(cache: DocumentCache, parallel: ParallelEncoding) -> Attention:
    """Attention to ``cache`` as ``parallel`` says, for ``override_attention``.

    ``capabilities.has_softmax_attention`` says whether a model can do so.
    """
    documents = slice(parallel.prefix_tokens, len(cache.token_ids))

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> Tensor:
        # A few queries at a time, so that memory stays at their scores.
        step = step_tokens(key.shape[2])
        parts = [
            adaptive_attention(queries, key, value, seen, scaling, parallel, documents)
            for queries, seen in zip(torch.split(query, step, 2), torch.split(mask, step, 2), strict=True)
        ]
        return torch.cat(parts, 1)

    return attention


def adaptive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    parallel: ParallelEncoding,
    documents: slice,
) -> Tensor:
    """Attention [B, S, Q, Dv] of queries [B, Q, S, D] over keys [B, H, N, D] and values [B, H, N, Dv] that ``mask``, bool
    [B, 1, S, N], shows.

    Attention over ``documents`` is a softmax of scores / T, and weighs exp(S T L), where L is the log-sum-exp of scores / T.
    Attention over prefix, question and answer weighs exp(L') by their scores as they are. Both together are one softmax, for
    which (S T - 1) L is added to the documents' scores / T. With T = S = 1 it is softmax attention.
    """
    batch, heads, n_queries, _ = query.shape
    group = heads // key.shape[1]
    # Query heads that share a key head are rows of one product, without repeating keys.
    rows = query.reshape(batch, key.shape[1], group * n_queries, -1)
    scores = (rows @ key.mT).float() * scaling
    scores.masked_fill_(~mask.repeat(1, 1, group, 1), -torch.inf)
    document_scores = scores[..., documents]
    document_scores /= parallel.temperature
    # All documents may be out of a sliding window.
    weight = document_scores.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)
    document_scores += (parallel.scale * parallel.temperature - 1) * weight
    attended = scores.softmax(-1).to(value.dtype) @ value
    return attended.reshape(batch, heads, n_queries, -1).transpose(1, 2)


def parallel_error(model: Model) -> ModelError:
    return ModelError(
        model.name,
        f"the attention of {model.config.model_type} is not a softmax over scaled products that goes "
        "through transformers' AttentionInterface, so that documents encoded in parallel cannot be read "
        "with it",
        "blend with another --policy (kvtool ask --policies lists them)",
    )
