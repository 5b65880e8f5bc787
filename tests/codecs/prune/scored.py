"""What the tests of scores share: a small layer, and what its inputs would be, from queries and a full attention matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvtool.codecs import LayerKV, Payload
from kvtool.codecs.prune.scores import inputs as names


@dataclass(frozen=True)
class Scored:
    """A layer, and ``weights`` [Q, T, T] that its queries give, each to tokens up to its own."""

    layer: LayerKV
    weights: Tensor
    inputs: Payload


def scored(
    tokens: int, heads: int = 2, group: int = 2, channels: int = 4, window: int = 3, seed: int = 0
) -> Scored:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(heads, tokens, channels, generator=generator) for _ in range(2))
    queries = torch.randn(heads * group, tokens, channels, generator=generator)
    layer = LayerKV(keys, values, torch.arange(tokens))
    products = queries @ keys.repeat_interleave(group, 0).mT / math.sqrt(channels)
    later = torch.ones(tokens, tokens).triu(1).bool()
    weights = products.masked_fill(later, -torch.inf).softmax(-1)
    window = min(window, tokens)
    mean = queries.mean(1)
    centred = queries - mean[:, None]
    inputs = {
        names.RECEIVED: weights.sum(1).view(heads, group, tokens).mean(1),
        names.REPLAY_QUERIES: queries,
        names.MOVED_QUERIES: queries,
        names.WINDOW_WEIGHTS: weights[:, tokens - window :],
        names.WINDOW_QUERIES: queries[:, tokens - window :],
        names.REPLAYED: pad(weights, (0, 0, 0, 1)).amax(1).view(heads, group, tokens).amax(1),
        names.QUERY_MEAN: mean,
        names.QUERY_COVARIANCE: centred.mT @ centred / max(tokens, 1),
        names.COPIED: torch.rand(heads * group, 2, generator=generator),
        names.HIDDEN_COSINE: torch.rand(1, generator=generator),
        names.TOKEN_ENTROPY: torch.rand(tokens, generator=generator),
    }
    return Scored(layer, weights, inputs)
