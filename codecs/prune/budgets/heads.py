"""How what a layer keeps is shared out among its heads, or all layers' among all heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtool.codecs.prune.budgets.budget import Budget, Scores, apportion, best


def uniform(scores: Scores, budget: Budget) -> list[Tensor]:
    """The same share of tokens in each head: layers of equal length keep equally many, but for ``whole`` ones.

    A head keeps a whole number of tokens, so that in all, the budget is met within half a token for each head.
    """
    total = budget.total(scores)
    part = [s for index, s in enumerate(scores) if index not in budget.whole]
    spared = sum(s.numel() for index, s in enumerate(scores) if index in budget.whole)
    keep = (total - spared) / max(sum(s.numel() for s in part), 1)
    masks = []
    for index, layer in enumerate(scores):
        always = budget.always(index, layer.shape[1])
        masks.append(best(layer, always, max(round(keep * layer.shape[1]), int(always.sum()))))
    return masks


def across(scores: Scores, budget: Budget) -> list[Tensor]:
    """The best tokens of all layers and heads: KVzip's own budget (Kim et al., 2025, arXiv 2505.23416).

    Scores must be comparable among layers, as largest weights are. The authors' code keeps what is above the score at the
    budget's place, and so fewer where scores are equal; here the budget is met exactly.
    """
    total = budget.total(scores)
    always = [budget.always(n, s.shape[1]).expand_as(s).flatten() for n, s in enumerate(scores)]
    if not scores:
        return []
    mask = best(torch.cat([s.flatten() for s in scores]), torch.cat(always), total)
    parts = torch.split(mask, [s.numel() for s in scores])
    return [part.view_as(s) for part, s in zip(parts, scores, strict=True)]


def by_layer(scores: Scores, budget: Budget, shares: Sequence[float]) -> list[Tensor]:
    """What is beside the tokens always kept, in proportion to ``shares`` of layers, their heads alike; exactly the budget.

    What a layer cannot hold goes to the others, in proportion too.
    """
    masks = []
    for index, (layer, n) in enumerate(zip(scores, _layers(scores, budget, shares), strict=True)):
        heads, tokens = layer.shape
        always = budget.always(index, tokens)
        counts = apportion([1.0] * heads, n, [int(always.sum())] * heads, [tokens] * heads)
        masks.append(best(layer, always, torch.tensor(counts, dtype=torch.int64)))
    return masks


def ada_kv(
    scores: Scores, budget: Budget, shares: Sequence[float] | None = None, floor: float = 0.2
) -> list[Tensor]:
    """Layers in proportion to ``shares``, or all alike; their heads by their scores (Ada-KV: Feng et al., 2024, arXiv
    2407.11550).

    A head's part is its number among the layer's best tokens, times 1 - ``floor``, plus ``floor`` times an equal part.
    Tokens that are always kept are not counted, as the window in the authors' code. It wraps any score whose heads are
    comparable. Checked against that code; kvpress marks each head's first tokens instead, which are among the others too.
    """
    if shares is None:
        shares = [float(s.numel() - least) for s, least in zip(scores, budget.least(scores), strict=True)]
    masks = []
    for index, (layer, n) in enumerate(zip(scores, _layers(scores, budget, shares), strict=True)):
        heads, tokens = layer.shape
        always = budget.always(index, tokens)
        least = int(always.sum())
        free = n - heads * least
        chosen = best(layer.flatten(), always.expand_as(layer).flatten(), n).view_as(layer)
        numbers = (chosen.sum(1) - least).tolist()
        parts = [(1 - floor) * number + floor * free / max(heads, 1) for number in numbers]
        counts = apportion(parts, free, [0] * heads, [tokens - least] * heads)
        masks.append(best(layer, always, torch.tensor(counts, dtype=torch.int64) + least))
    return masks


def by_class(scores: Scores, retrieval: Sequence[Tensor], budget: Budget) -> list[Tensor]:
    """The heads with the largest ``retrieval`` [L][H] keep all tokens, the others those that are always kept.

    So do DuoAttention (Xiao et al., 2024, arXiv 2410.10819) and RazorAttention (Tang et al., 2024, arXiv 2407.15891), whose
    heads are chosen by a threshold; here they are as many as the budget allows, and what is left of it, less than a head, is
    not used. DuoAttention keeps 64 sinks and 256 recent tokens. Checked against kvpress.
    """
    free = budget.total(scores) - sum(budget.least(scores))
    rank = torch.cat([head.float() for head in retrieval]).argsort(descending=True, stable=True).tolist()
    spans = [s.shape[1] - int(budget.always(n, s.shape[1]).sum()) for n, s in enumerate(scores) for _ in s]
    whole = [False] * len(spans)
    for head in rank:
        if spans[head] > free:
            break
        whole[head], free = True, free - spans[head]
    parts = torch.split(torch.tensor(whole, dtype=torch.bool), [len(s) for s in scores])
    return [
        part[:, None] | budget.always(n, s.shape[1]).expand_as(s)
        for n, (part, s) in enumerate(zip(parts, scores, strict=True))
    ]


def _layers(scores: Scores, budget: Budget, shares: Sequence[float]) -> list[int]:
    """The tokens of each layer, over its heads."""
    least = budget.least(scores)
    free = [s.numel() - n for s, n in zip(scores, least, strict=True)]
    counts = apportion(shares, budget.total(scores) - sum(least), [0] * len(free), free)
    return [n + count for n, count in zip(least, counts, strict=True)]
