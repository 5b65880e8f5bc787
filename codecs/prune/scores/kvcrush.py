"""Representatives of the tokens that another score would drop."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.codecs.errors import unexpected


def kvcrush(scores: Tensor, kept: int, share: float = 0.25) -> Tensor:
    """``scores`` [H, T] that rank the best of each head first, and after them the layer's representatives (KVCrush: Jha et
    al., 2025, arXiv 2503.00022).

    It wraps any score. Of the ``kept`` tokens of a head, 1 - ``share`` are its best. Each token has a signature, a bit for
    each head that says whether the token is in the better half of that head. What no head ranks among its best is sorted by
    the Hamming distance between its signature and an anchor, 0 and 1 in turn, and ``share`` of ``kept`` tokens are taken at
    equal steps from that order: one for each group of tokens that heads treat alike. They are the same for all heads.

    Checked against Intel's code for vLLM, which works on pages of 16 tokens, and leaves out of the order what the first head
    keeps; here it is single tokens, and what any head keeps. Its other anchors are left out. Places are 3 for a head's best,
    2 for representatives, and 1 for all others, so that a head whose budget is not ``kept`` goes on with its own scores.
    """
    heads, tokens = scores.shape
    if not 0 <= share <= 1:
        raise unexpected("kvcrush: share", share, "a number from 0 to 1")
    kept = min(max(kept, 0), tokens)
    groups = int(kept * share)
    ranks = _ranks(scores)
    best = ranks < kept - groups
    signature = ranks < tokens // 2
    anchor = torch.arange(heads, device=scores.device) % 2 == 1
    distances = (signature != anchor[:, None]).sum(0)
    order = distances.argsort(stable=True)
    order = order[~best.any(0)[order]]
    places = best.to(torch.float32) * 2 + 1
    if len(order) and groups:
        steps = torch.linspace(0, len(order) - 1, min(groups, len(order)), device=scores.device).long()
        places[:, order[steps]] = 2
    # Within a place, the head's own order: a fraction that falls with the rank.
    return places - ranks.double().div(tokens + 1).float()


def _ranks(scores: Tensor) -> Tensor:
    """The place [H, T] of each token in its head, 0 for the best; of equal ones the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(scores.shape[1]).to(order).expand_as(order)
    )
