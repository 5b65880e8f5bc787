"""Representatives of the tokens that another score would drop."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.codecs.errors import unexpected


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
    ranks = _ranks(scores.masked_fill(always, -torch.inf), always)
    free = tokens - int(always.sum())
    kept = min(max(kept, 0), free)
    groups = int(kept * share)
    best, halves = ranks < kept - groups, ranks < free // 2
    anchor = torch.arange(heads, device=scores.device) % 2 == 1
    order = (halves != anchor[:, None]).sum(0).argsort(stable=True)
    order = order[~(best.any(0) | always)[order]]
    places = best.float() * 2
    if len(order) and groups:
        steps = torch.linspace(0, len(order) - 1, min(groups, len(order)), device=scores.device).long()
        places[:, order[steps]] = 1
    # Within a place, the head's own order: a fraction that falls with the rank.
    return places.masked_fill(always, 3) + (1 - (ranks.double() + 1) / (tokens + 1)).float()


def _ranks(scores: Tensor, last: Tensor) -> Tensor:
    """The place [H, T] of each token in its head, 0 for the best; of equal ones the first, and ``last`` [T] after all."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(1, last.to(torch.uint8)[order].argsort(dim=-1, stable=True))
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
