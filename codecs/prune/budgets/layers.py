"""How much each layer keeps beside what it always keeps: shares [L], for ``heads.by_layer`` and ``heads.ada_kv``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.prune.budgets.budget import Budget, Scores


def pyramid(scores: Scores, budget: Budget, beta: float = 20.0) -> list[float]:
    """Fewer tokens the deeper the layer, in equal steps (PyramidKV: Cai et al., 2024, arXiv 2406.02069).

    Of the k tokens that a head keeps on average beside those that it always keeps, the last layer keeps k / ``beta``, and the
    first 2k - k / ``beta``. Where a head has not so many, the first layer keeps all, and the last what is left. The authors'
    code rounds down at each step; here the layers together keep exactly the budget. Checked against that code, and kvpress,
    which counts the window among what is shared out, and falls back to equal parts where the last layer would keep less.
    """
    heads = [0 if index in budget.whole else len(s) for index, s in enumerate(scores)]
    tokens = max((s.shape[1] for s in scores), default=0)
    free = max(tokens - budget.sinks - budget.recent, 0)
    mean = (budget.total(scores) - sum(budget.least(scores))) / max(sum(heads), 1)
    first = min(2 * mean - mean / beta, free)
    last = 2 * mean - first
    steps = max(len(scores) - 1, 1)
    return [n * (first + (last - first) * index / steps) for index, n in enumerate(heads)]


def cake(scores: Scores, preferences: Sequence[float]) -> list[float]:
    """In proportion to ``preferences`` [L], which ``scores.window.cake_preference`` gives (CAKE: Qin et al., 2025, arXiv
    2503.12491).

    The authors' code shares what a layer cannot hold out in equal parts; here it goes to the others in proportion. Checked
    against that code.
    """
    return [len(s) * preference for s, preference in zip(scores, preferences, strict=True)]


def squeeze(scores: Scores, cosines: Sequence[float], part: float = 0.4) -> list[float]:
    """``part`` of an equal share for layers that change little, and more for the others (SqueezeAttention: Wang et al., 2024,
    arXiv 2404.04793).

    ``cosines`` [L] are those of the input ``hidden_cosine``. Layers fall into three groups by them; those of the group with
    the largest get ``part``, near that of the authors' example (8 % of 21 %), and what they spare goes to all others alike.
    Their code finds groups by k-means from
    random starts; here they are the three runs of sorted cosines with the least sum of squares. Layers of fewer than three
    different cosines all get the same. Checked against that code.
    """
    if len(cosines) != len(scores):
        raise CodecError(f"cosines are {len(cosines)}, expected {len(scores)}, one for each layer")
    lowest = _third_group(sorted(cosines))
    few = [cosine >= lowest for cosine in cosines]
    rest = (len(few) - part * sum(few)) / max(len(few) - sum(few), 1)
    return [len(s) * (part if less else rest) for s, less in zip(scores, few, strict=True)]


def _third_group(values: Sequence[float]) -> float:
    """The least value of the last of three runs of sorted ``values``, infinite where there are no three."""
    if len(set(values)) < 3:
        return float("inf")

    def squares(run: Sequence[float]) -> float:
        mean = sum(run) / len(run)
        return sum((value - mean) ** 2 for value in run)

    n = len(values)
    cuts = [(a, b) for a in range(1, n - 1) for b in range(a + 1, n)]
    costs = [squares(values[:a]) + squares(values[a:b]) + squares(values[b:]) for a, b in cuts]
    return values[cuts[costs.index(min(costs))][1]]


def prefix_kv(received: Scores, budget: Budget) -> list[float]:
    """As many tokens as hold the same share of the weights that a layer's tokens receive (PrefixKV: Wang et al., 2024, arXiv
    2412.03409).

    ``received`` [L][H, T] is the input of that name. Weights are summed over heads, and sorted; of each layer the fewest
    tokens are taken whose sum is at least a share of all, found by bisection so that layers together keep the budget. The
    authors' code keeps the same tokens in all heads, and finds the numbers once for a model, on ten samples; here heads
    choose their own, and each segment has its numbers. Checked against that code.
    """
    part = [(n, s) for n, s in enumerate(received) if n not in budget.whole]
    sums = [s.float().sum(0).sort(descending=True).values.cumsum(0) for _, s in part]
    parts = [s / s[-1:].clamp(min=torch.finfo(torch.float32).tiny) for s in sums]
    free = budget.total(received) - sum(budget.least(received))

    def counts(share: float) -> list[int]:
        return [
            min(int((p < share).sum()) + 1, len(p)) * len(s) for p, (_, s) in zip(parts, part, strict=True)
        ]

    below, above = 0.0, 1.0
    while (middle := (below + above) / 2) not in (below, above):
        below, above = (middle, above) if sum(counts(middle)) <= free else (below, middle)
    shares = [0.0] * len(received)
    for (n, _), count in zip(part, counts(above), strict=True):
        shares[n] = float(count)
    return shares


def d2o(received: Sequence[Tensor]) -> list[float]:
    """More tokens where attention is spread evenly over them (D2O: Wan et al., 2024, arXiv 2406.13035).

    ``received`` [L][H, T] is the input of that name. A layer's number is the mean over heads of the variance of what tokens
    receive, each head's less the least and divided by the range over heads. Shares are the softmax of minus these numbers.
    The authors' code has query heads, whose mean key heads are here, and leaves the first two layers and the last whole: the
    budget's ``whole``. Checked against that code.
    """
    numbers = []
    for layer in received:
        variance = layer.float().var(-1) if layer.shape[1] > 1 else layer.new_zeros(len(layer))
        numbers.append(((variance - variance.min()) / (variance.max() - variance.min() + 1e-6)).mean())
    shares = torch.stack(numbers).neg().softmax(0).tolist() if numbers else []
    return [len(s) * share for s, share in zip(received, shares, strict=True)]
