"""Scores from the segment fed again."""

from __future__ import annotations

import math

from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.inputs import MOVED_QUERIES, REPLAYED, by_group, read
from kvtool.codecs.spec import Payload


def kvzip(layer: LayerKV, inputs: Payload) -> Tensor:
    """The largest weight while the segment is repeated (KVzip: Kim et al., 2025, arXiv 2505.23416).

    The largest is over replayed tokens and over the query heads of a key head, as in the authors' code. Scores of all heads
    and layers compete for one budget there (``budgets.heads.across``). Its passes are of 2,048 tokens, and their softmax is over
    the sinks, the passage and the tokens fed so far; whether ``replayed`` is measured so is said where it is measured. Its
    fast form (2601.17668) reads a trained gate, which kvtool has not.
    """
    return read(inputs, REPLAYED, layer)


GOES_ON = 32.0
"""What attention of a text that goes on counts against a replay's: means over many queries are smaller than the largest weight
of any. Chosen, of 0, 8 and 32, on five texts and four haystacks; docs/results/pruning.md measures others."""


def replayed_and_moved(layer: LayerKV, inputs: Payload) -> Tensor:
    """KVzip's score, for what is looked up, and the attention of a text that goes on: kvtool's own.

    That is the root mean square of the weights that the segment's own queries give, turned as if they came after it, over
    the segment alone (the highest attention of attention matching, Zweiger et al., 2026, arXiv 2602.16284).
    """
    queries = by_group(read(inputs, MOVED_QUERIES, layer), layer.n_heads).flatten(1, 2)
    weights = (queries @ layer.keys.float().mT / math.sqrt(layer.keys.shape[-1])).softmax(-1)
    # No queries, no attention.
    attention = weights.square().sum(1).div(max(weights.shape[1], 1)).sqrt()
    return kvzip(layer, inputs) + GOES_ON * attention
