"""How unexpected each token is to the model that reads it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kvtool.codecs import Inputs
from kvtool.codecs.prune.scores.inputs import TOKEN_ENTROPY
from kvtool.engines.attention.capture import step_tokens
from kvtool.engines.cache import DocumentCache
from kvtool.engines.recompute import recompute_tokens
from kvtool.model.model import Model

LOGITS = 1 << 24
"""Logits of a pass: 64 MB in float32, whatever the vocabulary."""


@torch.no_grad()
def token_entropy(model: Model, cache: DocumentCache, token_ids: Tensor) -> Inputs:
    """``token_entropy`` [T] float32, the same for all layers, of the segment ``token_ids`` [T] int64, the last T of ``cache``.

    -log of each token's probability after all tokens before it, the prefix's among them, in nats; zero for a token that has
    none before it. The segment is run once more over the cache, which is left as it was, in passes of bounded memory.
    """
    end = cache.get_seq_length()
    start = end - len(token_ids)
    entropy = torch.zeros(len(token_ids))
    step = min(step_tokens(end), max(1, LOGITS // model.text_config.vocab_size))

    def note(positions: Tensor, logits: Tensor) -> None:
        # Each predicts the token after it.
        targets = cache.token_ids[positions + 1].to(logits.device)
        entropy[positions + 1 - start] = cross_entropy(logits.float(), targets, reduction="none").cpu()

    for first in range(max(start - 1, 0), end - 1, step):
        positions = torch.arange(first, min(first + step, end - 1))
        recompute_tokens(
            model, cache, cache.token_ids, positions, write=False, on_logits=partial(note, positions)
        )
    return {TOKEN_ENTROPY: [entropy] * len(cache.layers)}
