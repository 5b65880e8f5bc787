"""Keys and values that are made, not chosen: KVSculpt (Jiang and Jin, 2026, arXiv 2603.27819)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import Budget, apportion, best
from kvtool.codecs.prune.scores.inputs import MOVED_QUERIES, by_group, read
from kvtool.codecs.prune.stage import Prune, take
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage_registry import register

RIDGE = 1e-3
"""Added to the diagonal of the values' normal equations, in units of the weights' squares."""

ITERATIONS, RATE = 10, 0.5
"""Of L-BFGS between two fits of values, and its first step."""

REFERENCES = 1024
"""Queries of a head, about; more cost time."""

PILOT, POWER = 1, 0.25
"""Rounds of the pilot, and by which power of its error a head's part of the budget grows."""


@register
@dataclass(frozen=True)
class SculptKeys(Prune):
    """Keeps the share ``keep`` of all heads' tokens: each head's ``sinks`` first and ``recent`` last as they are, and as many
    pairs of a key and a value as remain, made so that attention comes out the same.

    Pairs begin as the tokens that get the most attention from reference queries. In each of ``rounds``, keys move by
    ``ITERATIONS`` of L-BFGS, and values are fitted anew. A head's budget follows from the error of a pilot of ``PILOT`` rounds.
    """

    keep: float = 0.5
    sinks: int = 1
    recent: int = 32
    rounds: int = 5

    name: ClassVar[str] = "sculpt-keys"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.require(self.rounds in range(1, 1000), "rounds", self.rounds, "1 to 999")
        self.budget(0)

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        return cls(0.4, 1, 2, 1), cls(0.5, 0, 0, 2), cls(1.0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({MOVED_QUERIES})

    def budget(self, n_layers: int) -> Budget:
        return Budget(self.keep, self.sinks, self.recent)

    def scores(self, layer: LayerKV, inputs: Payload, rope: Rope | None) -> Tensor:
        """The attention that each token gets from the references; a head's sum is its need of pairs."""
        queries, budget = _references(layer, inputs), self.budget(1)
        always = budget.always(0, layer.keys.shape[1])
        count = max(round(self.keep * len(always)), int(always.sum()))
        scores = []
        for head_queries, keys, values in zip(queries, layer.keys.float(), layer.values.float(), strict=True):
            received = (head_queries @ keys.T / math.sqrt(keys.shape[1])).softmax(1).sum(0)
            kept = best(received, always, count)
            error = sculpt(head_queries, keys, values, kept, always, PILOT)[2]
            scores.append(received / received.sum().clamp(min=1e-30) * max(error, 1e-12) ** POWER)
        return torch.stack(scores) if scores else layer.keys.new_zeros(layer.keys.shape[:2]).float()

    def choose(
        self, scores: Sequence[Tensor], layers: Sequence[LayerKV], inputs: Sequence[Payload]
    ) -> list[Tensor]:
        budget = self.budget(len(scores))
        total, rows = budget.total(scores), [row for layer in scores for row in layer]
        always = [budget.always(n, layer.shape[1]) for n, layer in enumerate(scores) for _ in layer]
        least = [int(some.sum()) for some in always]
        needs = [float(row.sum()) for row in rows]
        free = apportion(
            needs, total - sum(least), [0] * len(rows), [len(r) - n for r, n in zip(rows, least, strict=True)]
        )
        masks = iter(
            best(row, some, n + more) for row, some, n, more in zip(rows, always, least, free, strict=True)
        )
        return [torch.stack([next(masks) for _ in layer]) if len(layer) else layer.bool() for layer in scores]

    def reduce(self, layer: LayerKV, kept: Tensor, inputs: Payload) -> LayerKV:
        always = self.budget(1).always(0, layer.keys.shape[1])
        rows = kept.expand(layer.n_heads, -1)
        keys, values = layer.keys.clone(), layer.values.clone()
        for head, (queries, some) in enumerate(zip(_references(layer, inputs), rows, strict=True)):
            made = sculpt(
                queries, layer.keys[head].float(), layer.values[head].float(), some, always, self.rounds
            )
            keys[head, some], values[head, some] = made[0].to(keys.dtype), made[1].to(values.dtype)
        return take(LayerKV(keys, values, layer.positions), kept)


def sculpt(
    queries: Tensor, keys: Tensor, values: Tensor, kept: Tensor, exact: Tensor, rounds: int
) -> tuple[Tensor, Tensor, float]:
    """Keys [n, D] and values [n, Dv] for the n ``kept`` [T] tokens of a head, those of ``exact`` as they are; and the mean
    squared error of what the ``queries`` [R, D] then read.

    Both lower the squared errors of the values that are read and of the logarithm of their mass. All float32.
    """
    free = ~exact[kept]
    if kept.all() or not len(queries) or not free.any():
        return keys[kept], values[kept], 0.0
    scale = 1 / math.sqrt(keys.shape[1])
    scores = queries @ keys.T * scale
    wanted, mass = scores.softmax(1) @ values, scores.logsumexp(1)
    made, read_values = keys[kept].clone(), values[kept].clone()
    moving = made[free].clone()
    solver = torch.optim.LBFGS([moving], lr=RATE, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def state() -> tuple[Tensor, Tensor, Tensor]:
        made[free] = moving
        scores = queries @ made.T * scale
        weights = scores.softmax(1)
        return weights, weights @ read_values - wanted, scores.logsumexp(1) - mass

    def fit() -> None:
        weights, off, _ = state()
        some = weights[:, free]
        target = some @ read_values[free] - off
        gram = some.T @ some
        gram.diagonal().add_(RIDGE)
        read_values[free] = torch.linalg.solve(gram.double(), (some.T @ target).double()).float()

    def loss() -> float:
        weights, off, over = state()
        slope = off @ read_values.T * (2 / off.numel())
        slope = weights * (slope - (weights * slope).sum(1, keepdim=True) + (2 / len(over)) * over[:, None])
        moving.grad = (slope[:, free].T @ queries) * scale
        return float(off.square().mean() + over.square().mean())

    fit()
    for _ in range(rounds):
        solver.step(loss)  # type: ignore[no-untyped-call]
        fit()
    made[free] = moving
    return made, read_values, float(state()[1].square().mean())


def _references(layer: LayerKV, inputs: Payload) -> Tensor:
    """[H, R, D]: what a text that goes on would ask, evenly chosen."""
    queries = by_group(read(inputs, MOVED_QUERIES, layer), layer.n_heads).flatten(1, 2)
    return queries[:, :: max(1, queries.shape[1] // REFERENCES)]
