"""The score from the segment fed again."""

from __future__ import annotations

from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.inputs import REPLAYED, read
from kvtool.codecs.spec import Payload


def kvzip(layer: LayerKV, inputs: Payload) -> Tensor:
    """The largest weight while the segment is repeated (KVzip: Kim et al., 2025, arXiv 2505.23416).

    The largest is over replayed tokens and over the query heads of a key head, as in the authors' code. Scores of all heads
    and layers compete for one budget there (``budgets.heads.across``). Its passes are of 2,048 tokens, and their softmax is over
    the sinks, the passage and the tokens fed so far; whether ``replayed`` is measured so is said where it is measured. Its
    fast form (2601.17668) reads a trained gate, which kvtool has not.
    """
    return read(inputs, REPLAYED, layer)
