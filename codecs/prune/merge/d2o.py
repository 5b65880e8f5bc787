"""Each dropped token into the kept one with the most similar key."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.merge.join import join

SIMILARITIES_AT_ONCE = 1 << 22
"""Of one head; they bound the memory of a long segment."""


def d2o(layer: LayerKV, mask: Tensor) -> LayerKV:
    """Dropped tokens whose key is similar enough to a kept one merged into it (D2O: Wan et al., 2024, arXiv 2406.13035).

    A dropped token joins the kept one of its head with the largest cosine u between their keys, if u is at least the mean of
    the layer's largest cosines, which is the paper's threshold at the first eviction; later ones, which move it, there are none.
    As in the paper, it weighs exp(u), and the kept token e. The authors' code weighs it u and the kept token 1, divides by
    their number, and tests the mean cosine over heads. Layer budgets are ``budgets.layers.d2o``. Checked against that code.
    """
    heads, tokens = mask.shape
    unit = normalize(layer.keys.float(), dim=-1)
    cosines = torch.full((heads, tokens), -torch.inf, device=unit.device)
    targets = torch.arange(tokens, device=unit.device).repeat(heads, 1)
    for head in range(heads):
        kept, dropped = (some.nonzero().flatten() for some in (mask[head], ~mask[head]))
        if not len(kept):
            continue
        for part in torch.split(dropped, max(SIMILARITIES_AT_ONCE // len(kept), 1)):
            cosine, nearest = (unit[head, part] @ unit[head, kept].T).max(1)
            cosines[head, part], targets[head, part] = cosine, kept[nearest]
    known = cosines[cosines.isfinite()]
    if not len(known):
        return layer
    # The mean of equal cosines may be rounded to above them.
    weights = torch.where(cosines >= known.mean() - 1e-6, cosines.exp(), 0)
    return join(layer, targets, weights.masked_fill(mask, math.e))
