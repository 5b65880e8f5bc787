"""Which channels of keys are worth keeping."""

from __future__ import annotations

from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.inputs import WINDOW_QUERIES, by_group, read
from kvtool.codecs.spec import Payload


def think(layer: LayerKV, inputs: Payload) -> Tensor:
    """The score [H, D] of each channel: the norm of its keys times that of the window's queries, squared (ThinK: Xu et al.,
    2024, arXiv 2407.21018).

    That is the squared norm of what the channel adds to the scores of attention. Norms are divided by the number of their
    entries, and the mean over the query heads of a key head is taken, as in kvpress, which the paper's first author has
    reviewed. The paper drops 40 % of the channels, of tokens before the window alone. Checked against kvpress.
    """
    queries = read(inputs, WINDOW_QUERIES, layer).square().mean(1)
    return by_group(queries, layer.keys.shape[0]).mean(1) * layer.keys.float().square().mean(1)
