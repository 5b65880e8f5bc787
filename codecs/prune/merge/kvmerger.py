"""Runs of similar keys, each as one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import best
from kvtool.codecs.prune.merge.join import join


def kvmerger(layer: LayerKV, received: Tensor, always: Tensor, counts: Tensor) -> tuple[LayerKV, Tensor]:
    """Runs of tokens with similar keys merged into the one that receives the most (KVMerger: Wang et al., 2024, arXiv
    2407.08454), and the mask of what is left.

    ``received`` [H, T] is the input of that name. Tokens of ``always`` [T] stay as they are; ``counts`` [H] are left of each
    head, at least these and one for each run of tokens between them. Where the paper joins neighbours whose keys' cosine is
    above a threshold, here as many are joined as the budget asks for, the most similar first. Each token weighs exp(-d² / 2σ²),
    with d its key's distance from that of the token it joins, and σ² the mean of d² over the run.

    Written from what others say of the paper, since neither its text nor its authors' code could be read: not checked.
    """
    keys, (heads, tokens) = layer.keys.float(), received.shape
    places = torch.arange(tokens, device=keys.device).expand(heads, tokens)
    cosines = torch.full((heads, tokens), -torch.inf, device=keys.device)
    cosines[:, 1:] = cosine_similarity(keys[:, 1:], keys[:, :-1], dim=-1)
    fixed = always.clone()
    fixed[1:] |= always[:-1]
    fixed[:1] = True
    # A token that is no neighbour's begins a run.
    joined = best(cosines.masked_fill(fixed, -torch.inf), torch.zeros_like(always), tokens - counts) & ~fixed
    runs = (~joined).cumsum(1) - 1
    largest = torch.full_like(received, -torch.inf).scatter_reduce_(1, runs, received, "amax")
    pivots = torch.full_like(runs, tokens).scatter_reduce_(
        1, runs, torch.where(received == largest.gather(1, runs), places, tokens), "amin"
    )
    targets = pivots.gather(1, runs)
    distances = (keys - keys.gather(1, targets[..., None].expand_as(keys))).square().sum(-1)
    sums, sizes = (
        torch.zeros_like(distances).scatter_add_(1, runs, x) for x in (distances, torch.ones_like(distances))
    )
    spread = (sums / sizes.clamp(min=1)).gather(1, runs)
    weights = torch.where(spread > 0, (-distances / (2 * spread)).exp(), 1)
    return join(layer, targets, weights), targets == places
