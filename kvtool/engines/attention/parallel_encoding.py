"""Reads a cache of documents that were encoded in parallel: each under the shared prefix, none seeing another.

Attention over several documents that were each read alone is flatter than over one text, and gives all of them too
much. Adaptive parallel encoding (arXiv 2502.05431) sharpens attention within the documents by a temperature T, and
lowers what they weigh against prefix and question by a scale S. The model is not changed: its attention is another
while such a cache is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kvtool.engines.attention.attending import attending
from kvtool.engines.attention.capture import step_tokens
from kvtool.engines.cache import DocumentCache, Parallel
from kvtool.errors import ModelError
from kvtool.model.model import Model


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

    with attending(model, read, not_plain):
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


def not_plain(model: Model) -> ModelError:
    return ModelError(
        model.name,
        (
            f"the attention of {model.config.model_type} is not a softmax over scaled products that "
            "goes through transformers' AttentionInterface, so that documents encoded in parallel "
            "cannot be read with it"
        ),
        "blend with another --policy (kvtool ask --policies lists them)",
    )
