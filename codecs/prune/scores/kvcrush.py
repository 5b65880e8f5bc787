"""Representatives of the tokens that another score would drop."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.codecs.errors import unexpected
from kvtool.codecs.prune.budgets.budget import ranks


def kvcrush(scores: Tensor, always: Tensor, kept: int, share: float = 0.25) -> Tensor:
    """``scores`` [H, T] that rank the best of each head first, and after them the layer's representatives (KVCrush: Jha et
    al., 2025, arXiv 2503.00022).

    It wraps any score. A head keeps ``kept`` tokens beside those of ``always`` [T] bool, which take no part. 1 - ``share`` of
    them are its best. Each token has a signature, a bit for each head that says whether the token is in the better half of that
    head. Tokens that no head has among its best are sorted by the Hamming distance between their signature and an anchor, 0 and
    1 in turn, and ``share`` of ``kept`` are taken at equal steps from that order: one for each group of tokens that heads
    treat alike. They are the same for all heads.

    Checked against Intel's code for vLLM, which works on pages of 16 tokens, and leaves out of the order what the first head
    keeps; here it is single tokens, and what any head keeps. Its other anchors are left out. The scores given lie above 3 for
    ``always``, above 2 for a head's best, above 1 for representatives, and above 0 for all others, so that a head whose budget
    is not ``kept`` goes on with its own order.
    """
    heads, tokens = scores.shape
    if not 0 <= share <= 1:
        raise unexpected("kvcrush: share", share, "a number from 0 to 1")
    always = always.to(scores.device)
    order_of_head = ranks(scores.masked_fill(always, -torch.inf), ~always)
    free = tokens - int(always.sum())
    kept = min(max(kept, 0), free)
    groups = int(kept * share)
    best, halves = order_of_head < kept - groups, order_of_head < free // 2
    anchor = torch.arange(heads, device=scores.device) % 2 == 1
    order = (halves != anchor[:, None]).sum(0).argsort(stable=True)
    order = order[~(best.any(0) | always)[order]]
    places = best.float() * 2
    if len(order) and groups:
        steps = torch.linspace(0, len(order) - 1, min(groups, len(order)), device=scores.device).long()
        places[:, order[steps]] = 1
    # Within a place, the head's own order: a fraction that falls with the rank.
    return places.masked_fill(always, 3) + (1 - (order_of_head.double() + 1) / (tokens + 1)).float()
