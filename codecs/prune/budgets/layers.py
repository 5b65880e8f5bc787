"""How much each layer keeps: shares [L], for ``heads.by_layer`` and ``heads.ada_kv``."""

from __future__ import annotations

from kvtool.codecs.prune.budgets.budget import Budget, Scores


def pyramid(scores: Scores, budget: Budget, beta: float = 20.0) -> list[float]:
    """Fewer tokens the deeper the layer, in equal steps (PyramidKV: Cai et al., 2024, arXiv 2406.02069).

    Of the k tokens that a head keeps on average beside those that it always keeps, the last layer keeps k / ``beta``, and the
    first 2k - k / ``beta``. Where a head has not so many, the first layer keeps all, and the last what is left. The authors'
    code rounds down at each step; here the layers together keep exactly the budget.
    """
    heads, least = [len(s) for s in scores], budget.least(scores)
    tokens = max((s.shape[1] for s in scores), default=0)
    free = max(tokens - budget.sinks - budget.recent, 0)
    mean = (budget.total(scores) - sum(least)) / max(sum(heads), 1)
    first = min(2 * mean - mean / beta, free)
    last = 2 * mean - first
    steps = max(len(scores) - 1, 1)
    return [
        n * (first + (last - first) * index / steps) + always
        for index, (n, always) in enumerate(zip(heads, least, strict=True))
    ]
