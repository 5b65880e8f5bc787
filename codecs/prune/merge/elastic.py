"""Each dropped token into the kept one that is nearest to it in the text."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.merge.join import join


def elastic(layer: LayerKV, mask: Tensor, sinks: int = 4) -> LayerKV:
    """Kept tokens as means of themselves and the dropped tokens nearest to them (Elastic Cache: Liu et al., 2024, arXiv
    2407.18121).

    Of two kept tokens that are equally near, the earlier is taken. The first ``sinks`` and the last token take none in. The
    authors' code has one mask for all heads, and shifts dropped tokens by the number of sinks against the kept ones, which
    looks like an oversight; here they stand where they stand. Scores are ``scores.received.elastic_cache``. Checked against
    that code but for the shift.
    """
    tokens = mask.shape[1]
    places = torch.arange(tokens, device=mask.device)
    anchors = mask & (places >= sinks) & (places < tokens - 1)
    before = torch.where(anchors, places, -2 * tokens).cummax(1).values
    after = torch.where(anchors, places, 3 * tokens).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(places - before <= after - places, before, after)
    merged = ~mask & (nearest >= 0) & (nearest < tokens)
    return join(layer, torch.where(merged, nearest, places), (merged | mask).float())
